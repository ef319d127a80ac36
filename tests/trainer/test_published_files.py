"""Which files are meant, and the refusal where that is not clear. Weights here are small and of no model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from disentangled.trainer.published_files import find_weights, open_published, read_tensors

CONFIG = {
    **{
        "model_type": "deberta-v2",
        "relative_attention": True,
        "position_biased_input": False,
        "pos_att_type": "p2c|c2p",
    },
    **{"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64},
}
STATE = {"deberta.embeddings.word_embeddings.weight": torch.ones(4, 2)}


def write_weights(file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".safetensors":
        save_file(STATE, file)
    else:
        torch.save(STATE, file)
    return file


def write_config(folder: Path, **changes: object) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "pytorch.model-000100.bin"])
def test_weights_of_a_folder_are_found_and_read(tmp_path: Path, name: str) -> None:
    file = write_weights(tmp_path / name)
    write_config(tmp_path)
    published = open_published(tmp_path, None)
    assert published.discriminator.name == name and published.discriminator.state.keys() == STATE.keys()
    assert published.generator is None and published.kind == "discriminator alone"
    assert published.configs["discriminator"].hidden_size == 32 and published.tokenizer is None
    assert open_published(file, None).hashes == published.hashes  # a file is named as its folder is


def test_generator_beside_is_found_with_its_own_config(tmp_path: Path) -> None:
    write_weights(tmp_path / "hub/pytorch_model.bin")
    write_config(tmp_path / "hub")
    write_weights(tmp_path / "hub/pytorch_model.generator.bin")
    beside = open_published(tmp_path / "hub", None)
    assert beside.generator is not None and beside.generator.name == "pytorch_model.generator.bin"
    assert beside.configs.keys() == {"discriminator"}  # config.json speaks of the discriminator alone
    write_weights(tmp_path / "export/model.safetensors")
    write_weights(tmp_path / "export/generator/model.safetensors")
    for folder, layers in ((tmp_path / "export", 2), (tmp_path / "export/generator", 1)):
        write_config(folder, num_hidden_layers=layers)
    exported = open_published(tmp_path / "export", None)
    assert exported.generator is not None and exported.generator.name == "generator/model.safetensors"
    assert [exported.configs[name].num_hidden_layers for name in ("discriminator", "generator")] == [2, 1]
    elsewhere = open_published(tmp_path / "export", tmp_path / "hub/pytorch_model.generator.bin")
    assert elsewhere.generator is not None and elsewhere.generator.name.endswith("hub/pytorch_model.generator.bin")
    write_weights(tmp_path / "export/pytorch_model.generator.bin")
    with pytest.raises(
        ValueError, match=r"holds two generators \(generator and pytorch_model.generator.bin\): name one"
    ):
        open_published(tmp_path / "export", None)


def test_weights_in_pieces_are_put_together(tmp_path: Path) -> None:
    pieces = {"a.weight": "pytorch_model-00001-of-00002.bin", "b.weight": "pytorch_model-00002-of-00002.bin"}
    for name, piece in pieces.items():
        torch.save({name: torch.ones(1)}, tmp_path / piece)
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": pieces}))
    assert read_tensors(find_weights(tmp_path, "key")).keys() == pieces.keys()
    (tmp_path / pieces["b.weight"]).unlink()
    with pytest.raises(
        ValueError, match=r"names pytorch_model-00002-of-00002.bin, which is missing: fetch all 2 pieces"
    ):
        read_tensors(find_weights(tmp_path, "key"))


def test_unclear_or_absent_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^continue_from.checkpoint .*none does not exist: give a run's folder"):
        open_published(tmp_path / "none", None)
    with pytest.raises(ValueError, match=r"holds no weights and no run: give a folder with one of model.safetensors"):
        open_published(tmp_path, None)
    file = write_weights(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"^continue_from.generator .*none does not exist"):
        open_published(tmp_path, tmp_path / "none")
    with pytest.raises(ValueError, match=r"are the same file, .*model.safetensors"):
        open_published(tmp_path, file)
    write_weights(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"more than one weight file \(model.safetensors and pytorch_model.bin\)"):
        open_published(tmp_path, None)
    assert open_published(file, None).discriminator.name == "model.safetensors"


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    for name, content in (("model.safetensors", b"cut short"), ("pytorch_model.bin", b"<html>not found</html>")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} cannot be read as weights \(.*\): fetch it again"):
            read_tensors(tmp_path / name)
    torch.save({"model": STATE}, tmp_path / "nested.bin")
    with pytest.raises(ValueError, match="holds something else than tensors by name: give a state dict"):
        read_tensors(tmp_path / "nested.bin")
    torch.save({"run": Path("code")}, tmp_path / "objects.bin")
    with pytest.raises(ValueError, match="cannot be read as weights"):
        read_tensors(tmp_path / "objects.bin")


def test_configs_and_tokenizers_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors")
    write_config(tmp_path, type_vocab_size=2)
    with pytest.raises(ValueError, match=r"/config.json: type_vocab_size is 2: this model has 0 only"):
        open_published(tmp_path, None)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is no JSON .*: fetch it again"):
        open_published(tmp_path, None)
    write_config(tmp_path)
    write_weights(tmp_path / "generator/model.safetensors")
    (tmp_path / "spm.model").write_bytes(b"one")
    assert open_published(tmp_path, None).tokenizer == tmp_path / "spm.model"
    (tmp_path / "generator/spm.model").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"two tokenizers lie beside the weights .*: the models differ"):
        open_published(tmp_path, None)
