from pathlib import Path

import pytest
import torch

from disentangled.trainer.model_files import ModelFiles, rank_file, tensor_name, write_rank_file

WHOLE = torch.arange(30.0)


def write(folder: Path, bounds: list[int], kinds: tuple[str, ...] = ("fp32", "exp_avg")) -> None:
    """WHOLE as parameter `layer.weight`, cut at `bounds`, one file for each part."""
    for rank, (start, stop) in enumerate(zip([0, *bounds], [*bounds, 30], strict=True)):
        keys = [tensor_name(kind, "layer.weight") for kind in kinds]
        tensors = {key: WHOLE[start:stop].clone() for key in keys}
        write_rank_file(folder / rank_file(rank), tensors, dict.fromkeys(keys, start))


@pytest.mark.parametrize("bounds", [[], [7], [10, 20], [1, 2, 29]])
@pytest.mark.parametrize(("start", "stop"), [(0, 30), (0, 1), (29, 30), (5, 25), (7, 7)])
def test_any_part_is_read_whatever_ranks_wrote(tmp_path: Path, bounds: list[int], start: int, stop: int) -> None:
    write(tmp_path, bounds)
    files = ModelFiles(tmp_path)
    assert files.kinds() == {"fp32", "exp_avg"} and files.names()[0] == "layer.weight"
    for kind in files.kinds():
        assert torch.equal(files.read(kind, "layer.weight", start, stop - start), WHOLE[start:stop])
    assert torch.equal(files.read_weight("layer.weight", [5, 6]), WHOLE.view(5, 6))


def test_missing_elements_are_an_error(tmp_path: Path) -> None:
    write(tmp_path, [10, 20])
    (tmp_path / rank_file(1)).unlink()
    files = ModelFiles(tmp_path)
    assert torch.equal(files.read("fp32", "layer.weight", 20, 10), WHOLE[20:])
    with pytest.raises(ValueError, match=r"holds 20 of the 30 elements of fp32/layer.weight"):
        files.read_weight("layer.weight", [30])
    with pytest.raises(ValueError, match=r"holds 0 of the 3 elements of fp32/other"):
        files.read("fp32", "other", 0, 3)


def test_folder_without_files_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no rank_\*.safetensors"):
        ModelFiles(tmp_path)
    (tmp_path / rank_file(0)).write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=rf"{rank_file(0)} is damaged"):
        ModelFiles(tmp_path)


def test_file_that_cannot_be_written_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="could not be written"):
        write_rank_file(tmp_path / "nowhere" / rank_file(0), {"fp32/a": WHOLE}, {"fp32/a": 0})
