from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import deepspeed
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor

from disentangled.data_prep.shard_schema import load_manifest
from disentangled.trainer.engine import build_models, check_engine_file
from tests.trainer.tiny_run import build_parts, tiny_config


@pytest.mark.parametrize(("sharing", "ratio"), [("gdes", 0.5), ("nes", 0.5), ("es", 0.0)])
def test_delta_ratio_is_the_own_tables_norm_over_the_shared_one(shards: Path, sharing: str, ratio: float) -> None:
    parts = build_parts(tiny_config(shards, f"model.embedding_sharing={sharing}"))
    embeddings = parts.discriminator.deberta.embeddings
    own = {"gdes": "word_embeddings_delta", "nes": "word_embeddings"}.get(sharing)
    if own:
        getattr(embeddings, own).weight.data.copy_(parts.generator.word_embeddings * 0.5)
    assert parts.plain_engines().delta_ratio() == pytest.approx(ratio)


def test_delta_ratio_of_a_new_gdes_pair_is_zero(shards: Path) -> None:
    assert build_parts(tiny_config(shards)).plain_engines().delta_ratio() == 0.0


def test_rows_of_a_table_in_pieces_are_those_of_the_whole_one_looked_up_while_it_is_gathered(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ZeRO-3's path, with the gathering played: the rows are kept, the table is not."""
    plain = build_parts(tiny_config(shards)).plain_engines()
    pieces = replace(plain, zero_stage=3)
    table, whole = pieces.generator.module.word_embeddings, []

    @contextmanager
    def gather(parameters: list[Tensor], modifier_rank: int | None) -> Iterator[None]:
        assert [id(x) for x in parameters] == [id(table)] and modifier_rank is None
        whole.append(True)
        yield
        whole.pop()

    monkeypatch.setattr(deepspeed.zero, "GatheredParameters", gather)
    ids = torch.arange(5, 25)
    with plain.generator_rows() as look_up:
        expected = look_up(ids)
    with pieces.generator_rows() as look_up:
        assert whole == [True]
        rows = look_up(ids)
    assert not whole and torch.equal(rows, expected) and not rows.requires_grad
    assert rows.untyped_storage().data_ptr() != table.untyped_storage().data_ptr()


def test_models_of_a_seed_are_the_same_and_the_pair_is_no_copy(shards: Path) -> None:
    one, two, other = (build_parts(tiny_config(shards, f"run.seed={seed}")) for seed in (1, 1, 2))
    weight = "deberta.encoder.layer.0.intermediate.dense.weight"
    of_generator = [dict(parts.generator.named_parameters())[weight] for parts in (one, two, other)]
    assert torch.equal(of_generator[0], of_generator[1]) and not torch.equal(of_generator[0], of_generator[2])
    assert not torch.equal(of_generator[0], dict(one.discriminator.named_parameters())[weight])


def test_models_take_their_vocabulary_from_the_shards_or_the_recipe(shards: Path) -> None:
    manifest = load_manifest(shards)
    generator, discriminator = build_models(tiny_config(shards), manifest)
    assert generator.config.vocab_size == discriminator.config.vocab_size == manifest.vocab_size
    generator, _ = build_models(tiny_config(shards, "model.vocab_size=640"), manifest)
    assert generator.word_embeddings.shape[0] == 640


def test_vocabulary_without_room_for_the_tokenizer_is_refused(shards: Path) -> None:
    manifest = load_manifest(shards)
    smallest = manifest.special_ids.mask + 1
    build_models(tiny_config(shards, f"model.vocab_size={smallest}"), manifest)
    with pytest.raises(ValueError, match=f"model.vocab_size is {smallest - 1}, .* uses {smallest} ids"):
        build_models(tiny_config(shards, f"model.vocab_size={smallest - 1}"), manifest)


@pytest.fixture
def with_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """An accelerator that has fp16."""
    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: True)


@pytest.mark.usefixtures("with_fp16")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_refused_at_stage_0_alone(shards: Path, precision: str) -> None:
    config = tiny_config(shards)
    for stage in (1, 2, 3):
        check_engine_file(config, {precision: {"enabled": True}, "zero_optimization": {"stage": stage}})
    with pytest.raises(ValueError, match=f"{precision} at ZeRO stage 0, .* use stage 1, 2 or 3, or torch_autocast"):
        check_engine_file(config, {precision: {"enabled": True}})
    check_engine_file(config, {precision: {"enabled": True}, "data_types": {"grad_accum_dtype": precision}})


def test_bf16_that_would_add_gradients_twice_is_refused(shards: Path) -> None:
    bf16 = {"bf16": {"enabled": True, "immediate_grad_update": False}}
    check_engine_file(tiny_config(shards), bf16 | {"zero_optimization": {"stage": 2}})
    with pytest.raises(ValueError, match=r"immediate_grad_update false at ZeRO stage 1, .*: leave the key out"):
        check_engine_file(tiny_config(shards), bf16 | {"zero_optimization": {"stage": 1}})


def test_autocast_in_fp16_is_refused(shards: Path) -> None:
    check_engine_file(tiny_config(shards), {"torch_autocast": {"enabled": True}})
    with pytest.raises(ValueError, match=r"torch_autocast in float16, .* set torch_autocast.dtype to bfloat16"):
        check_engine_file(tiny_config(shards), {"torch_autocast": {"enabled": True, "dtype": "float16"}})


def test_fp16_is_refused_where_the_accelerator_has_none(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get_accelerator()), "is_fp16_supported", lambda self: False)
    with pytest.raises(ValueError, match=r"fp16, which the accelerator here \(.*\) cannot: use an --engine of bf16"):
        check_engine_file(tiny_config(shards), {"fp16": {"enabled": True}, "zero_optimization": {"stage": 2}})


@pytest.mark.usefixtures("with_fp16")
def test_es_is_refused_in_fp16_alone(shards: Path) -> None:
    es = tiny_config(shards, "model.embedding_sharing=es")
    stage = {"zero_optimization": {"stage": 1}}
    fp16 = {"fp16": {"enabled": True}} | stage
    with pytest.raises(ValueError, match="es needs one loss scale for both models: use bf16 or fp32, not fp16"):
        check_engine_file(es, fp16)
    check_engine_file(es, {"bf16": {"enabled": True}} | stage)
    check_engine_file(replace(es, model=replace(es.model, embedding_sharing="gdes")), fp16)


@pytest.mark.parametrize("model", ["generator", "discriminator"])
def test_compiled_models_are_refused_at_stage_3_alone(shards: Path, model: str) -> None:
    compiled = tiny_config(shards, f"machine.compile_{model}=true")
    for stage in (0, 1, 2):
        check_engine_file(compiled, {"zero_optimization": {"stage": stage}})
    pieces = {"zero_optimization": {"stage": 3}}
    check_engine_file(tiny_config(shards), pieces)
    with pytest.raises(ValueError, match=r"gain nothing at ZeRO stage 3, .*: use stage 0, 1 or 2, or leave them false"):
        check_engine_file(compiled, pieces)
