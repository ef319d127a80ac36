"""State dicts and configs to transformers and back: `AutoModel` computes our hidden states, nothing is lost on return.

The bound on hidden states is the issue's 1e-5 in float32. Not here: what a training run writes
(tests/trainer/test_export.py).
"""

import inspect
import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModel, DebertaV2Config, DebertaV2ForMaskedLM
from transformers.models.deberta_v2 import modeling_deberta_v2

from disentangled.model.config import DebertaConfig, generator_config
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.hf_checkpoint import (
    config_from_hf,
    config_to_hf,
    discriminator_from_hf,
    discriminator_to_hf,
    discriminator_word_embeddings,
    generator_from_hf,
    generator_to_hf,
)
from disentangled.model.layout import padded_layout
from disentangled.model.published_names import DELTA, INPUT_POSITIONS, ORIGINAL_DELTA, WORD_EMBEDDINGS, State
from tests.model.tiny_models import MASK_ID, largest_error, padded_batch, scramble, tiny_config

RTD_HEAD = {
    f"mask_predictions.{layer}.{kind}" for layer in ("LayerNorm", "dense", "classifier") for kind in ("weight", "bias")
}
MLM_HEAD = {f"lm_predictions.lm_head.{name}" for name in ("dense.weight", "dense.bias", "LayerNorm.weight")} | {
    "lm_predictions.lm_head.LayerNorm.bias",
    "lm_predictions.lm_head.bias",
}
# read from every model's config by transformers itself, or absent from all DeBERTaV2 and V3 files
NOT_OF_THE_ARCHITECTURE = {
    *("output_attentions", "output_hidden_states", "return_dict", "num_labels", "problem_type", "cls_dropout"),
    *("embedding_size", "attention_head_size"),
}
ARCHITECTURES = {
    "DeBERTaV3": {},
    "DeBERTaV2, convolution": {"conv_kernel_size": 3, "conv_groups": 2, "conv_act": "gelu"},
    "own position keys, unnormalised table": {"share_att_key": False, "norm_rel_ebd": "none"},
    "c2p only, no buckets": {"pos_att_type": ("c2p",), "position_buckets": 0, "hidden_act": "relu"},
}


def make_pair(sharing: str, **changes: object) -> tuple[Generator, Discriminator]:
    """A generator and a discriminator with random weights, no two tables alike."""
    config = tiny_config(**changes)
    generator = scramble(Generator(generator_config(config, 2), MASK_ID), seed=1)
    return generator, scramble(Discriminator(config, sharing), seed=2)


def write_folder(folder: Path, state: State, config: DebertaConfig) -> str:
    folder.mkdir(exist_ok=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config_to_hf(config, cls_token_id=1, sep_token_id=2)))
    return str(folder)


def our_hidden_states(generator: Generator, discriminator: Discriminator, ids: Tensor, mask: Tensor) -> list[Tensor]:
    """h[0] .. h[L], each [B, N, D], with the embeddings as in training."""
    flat = ids.view(-1)
    rows = None if discriminator.embedding_sharing == "nes" else generator.word_embeddings[flat]
    return [h.view(*ids.shape, -1) for h in discriminator.hidden_states(flat, padded_layout(mask), None, rows)]


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_auto_model_computes_our_hidden_states(tmp_path: Path, sharing: str, changes: dict[str, object]):
    generator, discriminator = make_pair(sharing, **changes)
    state = discriminator_to_hf(generator.state_dict(), discriminator.state_dict(), sharing)
    folder = write_folder(tmp_path, state, discriminator.config)
    model, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["mismatched_keys"]
    assert set(loading["unexpected_keys"]) == RTD_HEAD
    ids, mask = padded_batch((1, 7, 33, 40))
    with torch.no_grad():
        theirs = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        ours = our_hidden_states(generator, discriminator, ids, mask)
    assert len(theirs) == len(ours) == discriminator.config.num_hidden_layers + 1
    for layer, (expected, got) in enumerate(zip(theirs, ours, strict=True)):
        assert largest_error(expected[mask.bool()], got[mask.bool()]) <= 1e-5, f"hidden state {layer}"


def test_generator_leaves_only_its_heads_to_auto_model(tmp_path: Path):
    generator, _ = make_pair("gdes")
    folder = write_folder(tmp_path, generator_to_hf(generator.state_dict()), generator.config)
    _, loading = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"]
    assert set(loading["unexpected_keys"]) == MLM_HEAD  # transformers never mentions position tables
    _, loading = DebertaV2ForMaskedLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]


def test_exported_table_is_the_sum_in_fp32_under_the_one_name():
    generator, discriminator = make_pair("gdes")
    shared, delta = generator.state_dict(), discriminator.state_dict()
    shared[WORD_EMBEDDINGS] = shared[WORD_EMBEDDINGS].bfloat16()
    delta[DELTA] = (delta[DELTA] * 1e-4).bfloat16()  # so small that bf16 sums would lose it
    state = discriminator_to_hf(shared, delta, "gdes")
    assert torch.equal(state[WORD_EMBEDDINGS], shared[WORD_EMBEDDINGS].float() + delta[DELTA].float())
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert {name for name in state if "word_embeddings" in name} == {WORD_EMBEDDINGS}


@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_config_comes_back_from_transformers_unchanged(changes: dict[str, object]):
    config = tiny_config(**changes)
    written = config_to_hf(config, cls_token_id=1, sep_token_id=2)
    theirs = DebertaV2Config(**written)
    assert config_from_hf(theirs.to_dict()) == config
    assert theirs.legacy is False and theirs.relative_attention is True and theirs.bos_token_id == 1
    json.dumps(written)


def test_config_leaves_no_key_of_the_modeling_to_a_default():
    source = inspect.getsource(modeling_deberta_v2)
    found = re.findall(r'\bconfig\.([a-z]\w*)|getattr\(config, "(\w+)"', source)
    read = {first or second for first, second in found} - NOT_OF_THE_ARCHITECTURE
    assert {"position_buckets", "legacy", "conv_kernel_size"} <= read
    assert read <= config_to_hf(tiny_config(), cls_token_id=1, sep_token_id=2).keys()


def test_published_config_is_debertav3_base():
    published = {
        **{"model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "vocab_size": 128100},
        **{"hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072},
        **{"max_position_embeddings": 512, "relative_attention": True, "position_buckets": 256, "layer_norm_eps": 1e-7},
        **{"norm_rel_ebd": "layer_norm", "share_att_key": True, "pos_att_type": "p2c|c2p", "type_vocab_size": 0},
        **{"max_relative_positions": -1, "position_biased_input": False, "num_attention_heads": 12},
        "num_hidden_layers": 12,
    }
    assert config_from_hf(published) == DebertaConfig()


def test_absent_config_keys_mean_what_transformers_takes_them_for():
    config = config_from_hf({"relative_attention": True, "pos_att_type": ["c2p"], "position_biased_input": False})
    theirs = DebertaV2Config()
    for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
        assert getattr(config, name) == getattr(theirs, name), name
    for name in ("hidden_act", "max_position_embeddings", "max_relative_positions", "layer_norm_eps", "pad_token_id"):
        assert getattr(config, name) == getattr(theirs, name), name
    assert (config.share_att_key, config.norm_rel_ebd, config.att_span) == (False, "none", 512)  # getattr's in modeling
    with pytest.raises(ValueError, match="pos_att_type"):
        config_from_hf({"relative_attention": True})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("relative_attention", False),
        ("type_vocab_size", 2),
        ("embedding_size", 16),
        ("attention_head_size", 4),
        ("model_type", "deberta"),
    ],
)
def test_config_of_another_architecture_is_refused(key: str, value: object):
    written = config_to_hf(tiny_config(), cls_token_id=1, sep_token_id=2)
    with pytest.raises(ValueError, match=rf"^config.json: {key} is {value!r}: "):
        config_from_hf(written | {key: value})


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
def test_discriminator_comes_back_as_it_was(sharing: str):
    generator, discriminator = make_pair(sharing)
    exported = discriminator_to_hf(generator.state_dict(), discriminator.state_dict(), sharing)
    returned = discriminator_from_hf(exported, generator.state_dict(), discriminator.config, sharing)
    twin = Discriminator(discriminator.config, sharing)
    twin.load_state_dict(returned)
    for name, tensor in discriminator.state_dict().items():
        rounding = 1e-7 if name == DELTA else 0.0  # half a unit in the last place of the sum, twice
        assert largest_error(twin.state_dict()[name], tensor) <= rounding, name


def test_discriminator_keeps_its_own_embeddings_beside_another_generator():
    generator, discriminator = make_pair("gdes")
    exported = discriminator_to_hf(generator.state_dict(), discriminator.state_dict(), "gdes")
    other = scramble(Generator(generator.config, MASK_ID), seed=9)
    twin = Discriminator(discriminator.config, "gdes")
    twin.load_state_dict(discriminator_from_hf(exported, other.state_dict(), discriminator.config, "gdes"))
    ids, mask = padded_batch((9, 12))
    before = our_hidden_states(generator, discriminator, ids, mask)[-1]
    after = our_hidden_states(other, twin, ids, mask)[-1]
    assert largest_error(before, after) <= 1e-5


def original_discriminator(table: dict[str, Tensor]) -> State:
    """A discriminator's file as the original code writes it, with `table` for its word embeddings."""
    generator, discriminator = make_pair("nes")
    state = {name: tensor for name, tensor in discriminator.state_dict().items() if name != WORD_EMBEDDINGS}
    state |= table | {INPUT_POSITIONS: torch.zeros(160, 32), "deberta.embeddings.position_ids": torch.arange(160)}
    state |= {INPUT_POSITIONS.replace(".weight", "._weight"): torch.zeros(160, 32)}
    state |= {name: tensor for name, tensor in generator.state_dict().items() if name in MLM_HEAD}
    return {name.replace("deberta.", "bert."): tensor for name, tensor in state.items()}


def test_file_of_the_original_code_gives_its_discriminator():
    generator, discriminator = make_pair("gdes")
    shared, delta = generator.word_embeddings.data, discriminator.state_dict()[DELTA]
    behind = delta - 0.01  # the original's sum is older than its delta by one update
    both = original_discriminator({WORD_EMBEDDINGS: shared + behind, ORIGINAL_DELTA: delta})
    delta_alone = original_discriminator({ORIGINAL_DELTA: delta})
    for state, expected in ((both, behind), (delta_alone, delta)):
        returned = discriminator_from_hf(state, generator.state_dict(), discriminator.config, "gdes")
        assert returned.keys() == discriminator.state_dict().keys()
        assert largest_error(returned[DELTA], expected) <= 1e-7
        nes = discriminator_from_hf(state, generator.state_dict(), discriminator.config, "nes")
        assert largest_error(nes[WORD_EMBEDDINGS], shared + expected) == 0.0
    with pytest.raises(ValueError, match=r"holds only what it adds .*_weight.*: give the generator's state too$"):
        discriminator_from_hf(delta_alone, None, discriminator.config, "nes")


def test_sum_that_is_not_the_generators_is_refused():
    generator, discriminator = make_pair("gdes")
    whole = generator.word_embeddings.data + discriminator.state_dict()[DELTA]
    both = original_discriminator({WORD_EMBEDDINGS: whole, ORIGINAL_DELTA: discriminator.state_dict()[DELTA]})
    assert torch.equal(discriminator_word_embeddings(both, generator.state_dict()), whole)
    stranger = scramble(Generator(generator.config, MASK_ID), seed=9).state_dict()
    with pytest.raises(ValueError, match=r"E_D is not the given generator's E_G \+ E_Delta \(they differ by 1\d\d% "):
        discriminator_word_embeddings(both, stranger)
    stranger[WORD_EMBEDDINGS] = torch.zeros(59, 32)
    with pytest.raises(ValueError, match=r"is \(60, 32\) in the discriminator and \(59, 32\) in the generator"):
        discriminator_word_embeddings(both, stranger)


def test_discriminator_published_alone_continues_from_its_own_table():
    generator, discriminator = make_pair("nes")
    exported = discriminator_to_hf(generator.state_dict(), discriminator.state_dict(), "nes")
    state = generator.state_dict() | {WORD_EMBEDDINGS: discriminator_word_embeddings(exported, None)}
    returned = discriminator_from_hf(exported, state, discriminator.config, "gdes")
    assert not returned[DELTA].any()
    with pytest.raises(ValueError, match=r"^embedding sharing gdes needs the generator's embeddings"):
        discriminator_from_hf(exported, None, discriminator.config, "gdes")


def test_two_tables_are_refused_for_one():
    generator, discriminator = make_pair("nes")
    exported = discriminator_to_hf(generator.state_dict(), discriminator.state_dict(), "nes")
    with pytest.raises(ValueError, match=r"^embedding sharing es has one table, .* two: use gdes or nes$"):
        discriminator_from_hf(exported, generator.state_dict(), discriminator.config, "es")


def test_names_without_prefix_are_understood():
    _, discriminator = make_pair("nes")
    bare = {name.removeprefix("deberta."): tensor for name, tensor in discriminator.state_dict().items()}
    returned = discriminator_from_hf(bare, None, discriminator.config, "nes")
    assert returned.keys() == discriminator.state_dict().keys()


def test_generator_comes_back_from_our_file_and_from_the_original_one():
    generator, _ = make_pair("gdes")
    state = generator.state_dict()
    original = {name.replace("deberta.", "bert."): tensor for name, tensor in state.items()}
    original[INPUT_POSITIONS.replace("deberta.", "bert.")] = original.pop("mask_decoder.position_embeddings.weight")
    original |= {name: torch.zeros(1) for name in RTD_HEAD}
    for file in (generator_to_hf(state), original):
        returned = generator_from_hf(file, generator.config)
        assert returned.keys() == state.keys()
        assert all(torch.equal(returned[name], tensor) for name, tensor in state.items())


def test_keys_that_do_not_fit_are_named():
    generator, discriminator = make_pair("gdes")
    exported = discriminator_to_hf(generator.state_dict(), discriminator.state_dict(), "gdes")
    without = {name: tensor for name, tensor in exported.items() if name != "mask_predictions.dense.bias"}
    unknown = exported | {"deberta.encoder.layer.3.output.dense.bias": torch.zeros(32)}
    reshaped = exported | {"deberta.embeddings.LayerNorm.bias": torch.zeros(31)}
    faults = (
        (without, r"^the discriminator's checkpoint lacks mask_predictions\.dense\.bias: "),
        (
            unknown,
            r"^the discriminator's checkpoint has unknown keys deberta\.encoder\.layer\.3\.output\.dense\.bias: ",
        ),
        (reshaped, r"has other shapes deberta\.embeddings\.LayerNorm\.bias \(31,\) instead of \(32,\): "),
    )
    for state, message in faults:
        with pytest.raises(ValueError, match=message):
            discriminator_from_hf(state, generator.state_dict(), discriminator.config, "gdes")
    no_table = {name: tensor for name, tensor in exported.items() if name != WORD_EMBEDDINGS}
    with pytest.raises(ValueError, match=r"lacks deberta\.embeddings\.word_embeddings\.weight"):
        discriminator_from_hf(no_table, generator.state_dict(), discriminator.config, "gdes")
    with pytest.raises(ValueError, match=r"^the generator's checkpoint lacks .* and 19 more: "):
        generator_from_hf({WORD_EMBEDDINGS: generator.word_embeddings}, tiny_config(num_hidden_layers=1))
