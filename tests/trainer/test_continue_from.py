"""New runs that begin with other weights: folders as others write them, the report, and what is refused.

Not here: parts and tensors one by one (tests/model/test_pair_from_hf.py), the command (tests/integration/).
"""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from disentangled.data_prep.shard_schema import load_manifest
from disentangled.model.config import DebertaConfig
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.layout import padded_layout
from disentangled.model.published_names import DECODER_POSITIONS, DELTA, MLM_HEAD
from disentangled.trainer.continue_from import ContinueReport, load_continued
from disentangled.trainer.dataset import LocalDataset
from disentangled.trainer.engine import build_models
from disentangled.trainer.export import export_run
from disentangled.trainer.hf_tokenizer import parse_model
from disentangled.trainer.sections import ContinueSection
from tests.model.tiny_models import largest_error, padded_batch, scramble
from tests.trainer.published_folders import other_tokenizer, save_masked_lm, save_original, save_trunk
from tests.trainer.test_export import write_checkpoint, write_run
from tests.trainer.tiny_run import tiny_config

HALF_DEPTH = "model.generator_num_hidden_layers=1"


def architecture(shards: Path, *overrides: str) -> DebertaConfig:
    """The discriminator's config of the tiny recipe."""
    config = tiny_config(shards, HALF_DEPTH, *overrides)
    return config.model.discriminator(load_manifest(shards).vocab_size)


def spm_of(shards: Path) -> bytes:
    return (shards / "spm.model").read_bytes()


def begin(shards: Path, checkpoint: Path, *overrides: str) -> tuple[Generator, Discriminator, ContinueReport]:
    """Both models of a new run that continues from `checkpoint`."""
    keys = [HALF_DEPTH, f"continue_from.checkpoint={checkpoint}", f"run.dir={checkpoint.parent / 'new'}", *overrides]
    config = tiny_config(shards, *keys)
    pair = build_models(config, load_manifest(shards))
    return *pair, load_continued(*pair, config, LocalDataset(shards))


def hidden_states(generator: Generator, discriminator: Discriminator, ids: torch.Tensor, mask: torch.Tensor) -> Any:
    flat = ids.view(-1)
    states = discriminator.hidden_states(flat, padded_layout(mask), None, generator.word_embeddings[flat])[-1]
    return states.view(*ids.shape, -1)


def test_trunk_that_transformers_saved_computes_the_same(shards: Path, tmp_path: Path) -> None:
    model = save_trunk(tmp_path / "hub", architecture(shards), spm_of(shards)).eval()
    generator, discriminator, report = begin(shards, tmp_path / "hub", "continue_from.generator_warmup_steps=3")
    ids, mask = padded_batch((9, 30))
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
        got = hidden_states(generator, discriminator, ids, mask)
    assert largest_error(expected[mask.bool()], got[mask.bool()]) <= 1e-5
    assert not discriminator.state_dict()[DELTA].any()
    rows, used = architecture(shards).vocab_size, load_manifest(shards).num_pieces + 1
    assert rows >= used
    assert report.lines() == [
        f"continuing from {tmp_path / 'hub'} (discriminator alone)",
        "  part                      found  from",
        "  generator's E_G               1  E_G = E_D: no generator is given",
        "  generator's layers           21  the first 1 of the discriminator's",
        "  generator's MLM head          0  initialised: model.safetensors has none",
        "  mask decoder's positions      0  initialised: model.safetensors has none",
        "  discriminator's E_D           1  model.safetensors, E_Delta = 0",
        "  discriminator's layers       37  model.safetensors",
        "  discriminator's RTD head      0  initialised: model.safetensors has none",
        f"  vocabulary: all {used} tokens found",
        "  the generator trains alone for 3 steps",
        "  data: from the beginning, in the order of run.seed 1; optimizer and schedule are new",
    ]


@pytest.mark.parametrize("legacy", [True, False])
def test_masked_lm_of_transformers_lends_its_head(shards: Path, tmp_path: Path, legacy: bool) -> None:
    model = save_masked_lm(tmp_path / "hub", architecture(shards), spm_of(shards), legacy)
    generator, _, report = begin(shards, tmp_path / "hub")
    head = model.cls.predictions if legacy else model.lm_predictions.lm_head
    dense = head.transform.dense if legacy else head.dense
    assert torch.equal(generator.state_dict()[f"{MLM_HEAD}dense.weight"], dense.weight)
    assert torch.equal(generator.state_dict()[f"{MLM_HEAD}bias"], head.bias)
    assert torch.equal(generator.word_embeddings, model.deberta.embeddings.word_embeddings.weight)
    assert any("generator's MLM head          5  model.safetensors" in line for line in report.lines())
    assert any("generator_warmup_steps is 0" in line for line in report.lines())


def test_pair_of_the_original_code_comes_back_whole(shards: Path, tmp_path: Path) -> None:
    pair = build_models(tiny_config(shards, HALF_DEPTH), load_manifest(shards))
    for seed, model in enumerate(pair):
        scramble(model, seed)
    own, theirs = save_original(tmp_path / "output", *pair)
    keys = (f"continue_from.generator={theirs}", f"continue_from.tokenizer={shards / 'spm.model'}")
    *continued, report = begin(shards, own, *keys)
    for model, original in zip(continued, pair, strict=True):
        for name, tensor in original.state_dict().items():
            bound = 1e-7 if name == DELTA else 0.0  # the sum of both tables is rounded once
            assert largest_error(model.state_dict()[name], tensor) <= bound, name
    assert any("no config.json: heads, buckets and activation are the recipe's" in line for line in report.lines())


def test_export_and_run_continue_with_the_same_models(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(shards, run, HALF_DEPTH)
    write_checkpoint(shards, run, 5, HALF_DEPTH)
    pair = write_checkpoint(shards, run, 10, HALF_DEPTH)
    export_run(run, tmp_path / "export")
    begun = {name: begin(shards, path) for name, path in (("run", run), ("export", tmp_path / "export"))}
    for *continued, report in begun.values():
        for model, original in zip(continued, pair, strict=True):
            for name, tensor in original.state_dict().items():
                assert largest_error(model.state_dict()[name], tensor) <= (1e-7 if name == DELTA else 0.0), name
        assert all("initialised" not in line for line in report.lines())
    assert begun["run"][2].lines()[0] == f"continuing from {run} (step_00000010 of a run)"
    assert "the earlier run had this very order: give another run.seed" in begun["run"][2].lines()[-1]
    assert "warning" not in begin(shards, run, "run.seed=2")[2].lines()[-1]
    assert "warning" not in begin(shards, run, "data.sequence_length=64")[2].lines()[-1]
    earlier = begin(shards, run / "checkpoints/step_00000005")[0]
    assert not torch.equal(earlier.word_embeddings, pair[0].word_embeddings)
    with pytest.raises(ValueError, match=r"is a run, which has a generator: drop continue_from.generator"):
        begin(shards, run, f"continue_from.generator={tmp_path / 'export/generator'}")


def test_longer_documents_need_no_new_weights_but_positions(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(shards, run, HALF_DEPTH)
    old, _ = write_checkpoint(shards, run, 10, HALF_DEPTH)
    longer = "model.max_position_embeddings=128"
    with pytest.raises(
        ValueError, match=r"distances up to 64, the recipe's up to 128 .*set .*positions=64 to keep .*=128"
    ):
        begin(shards, run, longer)
    generator, discriminator, report = begin(shards, run, longer, "model.max_relative_positions=64")
    table, grown = old.state_dict()[DECODER_POSITIONS], generator.state_dict()[DECODER_POSITIONS]
    assert torch.equal(grown[:64], table) and torch.equal(grown[64:126], table[1:63])
    assert discriminator.config.relative_span == 64
    assert not any("their meaning changes" in line for line in report.lines())
    stretched = begin(shards, run, longer, "model.max_relative_positions=128")[2]
    assert any("ended at 64, now at 128: their meaning changes" in line for line in stretched.lines())


def test_other_vocabulary_is_carried_over_in_all_three_tables(shards: Path, tmp_path: Path) -> None:
    tokenizer = other_tokenizer()
    old_pieces, new_pieces = parse_model(tokenizer).pieces, parse_model(spm_of(shards)).pieces
    shared = [piece for piece in new_pieces if piece in old_pieces]
    assert 50 < len(shared) < len(new_pieces) - 50
    config = replace(architecture(shards), vocab_size=448)  # 401 ids and padding
    model = save_masked_lm(tmp_path / "hub", config, tokenizer, legacy=False)
    generator, discriminator, report = begin(shards, tmp_path / "hub")
    table, bias = model.deberta.embeddings.word_embeddings.weight, model.lm_predictions.lm_head.bias
    new = [new_pieces.index(piece) for piece in shared] + [len(new_pieces)]
    old = [old_pieces.index(piece) for piece in shared] + [len(old_pieces)]
    assert torch.equal(generator.word_embeddings[new], table[old])
    assert torch.equal(generator.state_dict()[f"{MLM_HEAD}bias"][new], bias[old])
    assert not discriminator.state_dict()[DELTA].any()
    fresh = build_models(tiny_config(shards, HALF_DEPTH), load_manifest(shards))[0].word_embeddings
    padding = slice(len(new_pieces) + 1, None)
    assert torch.equal(generator.word_embeddings[padding], fresh[padding])
    assert f"{len(shared) + 1} of {len(new_pieces) + 1} tokens found, " in report.vocabulary


def test_unknown_or_wrong_tokenizer_is_refused(shards: Path, tmp_path: Path) -> None:
    save_trunk(tmp_path / "hub", architecture(shards), None)
    with pytest.raises(
        ValueError, match=r"^no spm.model lies beside the checkpoint.*continue_from.tokenizer=FILE, or "
    ):
        begin(shards, tmp_path / "hub")
    assert "all " in begin(shards, tmp_path / "hub", "continue_from.tokenizer=shards")[2].vocabulary
    save_trunk(tmp_path / "small", replace(architecture(shards), vocab_size=200), spm_of(shards))
    with pytest.raises(
        ValueError, match=r"embeddings have 200 rows, the tokenizer .*small/spm.model \d+ ids: give the"
    ):
        begin(shards, tmp_path / "small")
    save_trunk(tmp_path / "wide", replace(architecture(shards), vocab_size=9000), spm_of(shards))
    with pytest.raises(ValueError, match=r"embeddings have 9000 rows, the tokenizer .* ids: give the checkpoint's own"):
        begin(shards, tmp_path / "wide")


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_act", "relu"), ("num_attention_heads", 4), ("position_buckets", 16), ("norm_rel_ebd", "none")],
)
def test_config_that_disagrees_is_refused_with_both_values(
    shards: Path, tmp_path: Path, key: str, value: object
) -> None:
    config = architecture(shards)
    save_trunk(tmp_path / "hub", replace(config, **{key: value}), spm_of(shards))
    found, ours = repr(value), repr(getattr(config, key))
    line = (
        f"discriminator has {key} {found} in its config, the recipe's model.{key} is {ours}: set model.{key}={value} or"
    )
    with pytest.raises(ValueError) as refused:
        begin(shards, tmp_path / "hub")
    assert line in str(refused.value)


def test_depths_that_disagree_name_the_recipes_key(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_run(shards, run, HALF_DEPTH)
    write_checkpoint(shards, run, 10, HALF_DEPTH)
    with pytest.raises(
        ValueError, match=r"generator has num_hidden_layers 1 .* set model.generator_num_hidden_layers=1"
    ):
        begin(shards, run, "model.generator_num_hidden_layers=2")


def test_run_stopped_before_its_first_checkpoint_begins_with_the_same_weights(shards: Path, tmp_path: Path) -> None:
    save_trunk(tmp_path / "hub", architecture(shards), spm_of(shards))
    *_, report = begin(shards, tmp_path / "hub")
    (tmp_path / "new").mkdir()
    report.write(tmp_path / "new")
    moved = shutil.copytree(tmp_path / "hub", tmp_path / "moved")
    assert begin(shards, moved)[2].hashes == report.hashes
    save_masked_lm(moved, architecture(shards), None, legacy=False)
    with pytest.raises(ValueError, match=r"new began with other weights than continue_from.checkpoint holds now"):
        begin(shards, moved)


def test_keys_without_a_checkpoint_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^continue_from.generator_warmup_steps is set without .*=DIR, or leave both"):
        ContinueSection(generator_warmup_steps=5)
    with pytest.raises(ValueError, match=r"continue_from.generator_init is 'zero': it must be one of copy, random"):
        ContinueSection(checkpoint="x", generator_init="zero")


def test_initial_weights_depend_on_nothing_but_the_files(shards: Path, tmp_path: Path) -> None:
    save_trunk(tmp_path / "hub", architecture(shards), spm_of(shards))
    first, second = (begin(shards, tmp_path / "hub") for _ in range(2))
    for one, other in zip(first[:2], second[:2], strict=True):
        assert all(torch.equal(tensor, other.state_dict()[name]) for name, tensor in one.state_dict().items())
