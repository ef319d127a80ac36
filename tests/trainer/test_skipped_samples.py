from pathlib import Path

import pytest

from disentangled.trainer.skipped_samples import SKIPS_FILE, Skip, num_skipped_before, read_skips, write_skips

SKIPS = [Skip(10, 24, [3, 1]), Skip(40, 8, []), Skip(10, 8, [])]


def test_position_moves_at_the_step_of_a_skip() -> None:
    assert [num_skipped_before(step, SKIPS) for step in (0, 9, 10, 39, 40, 99)] == [0, 0, 32, 32, 40, 40]
    assert num_skipped_before(99, []) == 0


def test_skips_come_back_from_the_run_folder(tmp_path: Path) -> None:
    assert read_skips(tmp_path) == []
    write_skips(tmp_path, SKIPS)
    assert read_skips(tmp_path) == SKIPS


@pytest.mark.parametrize("content", ["[{", '[{"step": 1}]', "[3]"])
def test_damaged_file_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / SKIPS_FILE).write_text(content)
    with pytest.raises(ValueError, match=rf"{SKIPS_FILE} is damaged .*: restore it, or choose another run.dir"):
        read_skips(tmp_path)
