"""A pair from what was published: every part from where the report says, and what is unclear refused.

Not here: names and sums in themselves (test_hf_checkpoint.py), files and tokens (tests/trainer/).
"""

import re

import pytest
import torch
from torch import Tensor
from transformers import DebertaV2ForMaskedLM

from disentangled.model.config import generator_config
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.hf_checkpoint import discriminator_to_hf, generator_to_hf
from disentangled.model.pair_from_hf import Part, PublishedModel, grow_positions, load_published_pair
from disentangled.model.published_names import (
    DECODER_POSITIONS,
    DELTA,
    INPUT_POSITIONS,
    MLM_HEAD,
    RTD_HEAD,
    WORD_EMBEDDINGS,
    State,
)
from tests.model.tiny_models import MASK_ID, hf_config, scramble, tiny_config

LAYERS = "deberta.encoder."


def new_pair(sharing: str = "gdes", generator_layers: int = 2, **changes: object) -> tuple[Generator, Discriminator]:
    """What a run starts with."""
    config = tiny_config(**changes)
    generator = Generator(generator_config(config, generator_layers), MASK_ID, seed=5)
    return generator, Discriminator(config, sharing, seed=6)


def trained_pair() -> tuple[State, State]:
    """A discriminator's and a generator's file with random weights."""
    generator, discriminator = (scramble(model, seed) for seed, model in enumerate(new_pair()))
    return discriminator_to_hf(generator.state_dict(), discriminator.state_dict(), "gdes"), generator_to_hf(
        generator.state_dict()
    )


def same_rows(old: Tensor, initial: Tensor) -> Tensor:
    return old.clone()


def load(
    pair: tuple[Generator, Discriminator], own: State, theirs: State | None = None, init: str = "copy"
) -> dict[str, Part]:
    published = PublishedModel("G.bin", theirs) if theirs is not None else None
    parts = load_published_pair(*pair, PublishedModel("D.bin", own), published, same_rows, init)
    return {part.name: part for part in parts}


def part_of(state: State, *prefixes: str) -> State:
    return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def assert_same(state: State, expected: State) -> None:
    assert state.keys() >= expected.keys() and expected
    differing = [name for name, tensor in expected.items() if not torch.equal(state[name], tensor)]
    assert differing == []


def test_published_pair_is_taken_whole_and_the_discriminator_keeps_its_own_table():
    own, theirs = trained_pair()
    generator, discriminator = new_pair()
    parts = load((generator, discriminator), own, theirs)
    assert_same(generator.state_dict(), theirs)
    assert_same(discriminator.state_dict(), part_of(own, LAYERS, RTD_HEAD))
    assert torch.equal(discriminator.state_dict()[DELTA], own[WORD_EMBEDDINGS] - theirs[WORD_EMBEDDINGS])
    assert discriminator.state_dict()[DELTA].abs().max() > 0.1
    assert parts["discriminator's E_D"].origin == "D.bin, E_Delta = E_D - E_G"
    assert all("initialised" not in part.origin for part in parts.values())
    tensors = {name: part.num_tensors for name, part in parts.items()}
    assert sum(count for name, count in tensors.items() if name.startswith("discriminator's")) == len(own)
    assert sum(tensors.values()) == len(own) + len(theirs)


def test_discriminator_alone_lends_its_first_layers_and_its_table():
    own, _ = trained_pair()
    generator, discriminator = new_pair()
    initial = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    parts = load((generator, discriminator), own)
    first = {name: own[name] for name in part_of(initial, LAYERS)}
    assert {name.split(".")[3] for name in part_of(first, f"{LAYERS}layer.")} == {"0", "1"}
    assert_same(generator.state_dict(), first | {WORD_EMBEDDINGS: own[WORD_EMBEDDINGS]})
    assert_same(generator.state_dict(), part_of(initial, MLM_HEAD, "mask_decoder."))
    assert not discriminator.state_dict()[DELTA].any()
    assert parts["generator's E_G"].origin == "E_G = E_D: no generator is given"
    assert parts["generator's layers"].origin == "the first 2 of the discriminator's"
    for name in ("generator's MLM head", "mask decoder's positions"):
        assert parts[name] == Part(name, 0, "initialised: D.bin has none")


def test_head_and_positions_left_in_the_discriminators_file_are_used():
    own, theirs = trained_pair()
    own |= part_of(theirs, MLM_HEAD) | {INPUT_POSITIONS: theirs[DECODER_POSITIONS]}
    generator, discriminator = new_pair()
    parts = load((generator, discriminator), own)
    assert_same(generator.state_dict(), part_of(theirs, MLM_HEAD, DECODER_POSITIONS))
    assert parts["generator's MLM head"].num_tensors == 5 and parts["mask decoder's positions"].num_tensors == 1


def test_layers_are_left_random_where_asked():
    own, _ = trained_pair()
    generator, discriminator = new_pair()
    initial = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    parts = load((generator, discriminator), own, init="random")
    embeddings = part_of(own, "deberta.embeddings.")
    assert len(embeddings) == 3
    assert_same(generator.state_dict(), part_of(initial, LAYERS) | embeddings)
    assert parts["generator's layers"].origin.startswith("initialised (generator_init random)")


def test_generator_deeper_than_the_discriminator_keeps_its_last_layers():
    own, _ = trained_pair()
    pair = new_pair(generator_layers=5)
    initial = {name: tensor.clone() for name, tensor in pair[0].state_dict().items()}
    parts = load(pair, own)
    assert parts["generator's layers"].origin == "the first 3 of the discriminator's, 2 more initialised"
    last = f"{LAYERS}layer.4."
    assert_same(pair[0].state_dict(), part_of(own, f"{LAYERS}layer.2.") | part_of(initial, last))


@pytest.mark.parametrize("sharing", ["nes", "es"])
def test_other_ways_of_sharing_begin_with_one_table_too(sharing: str):
    own, theirs = trained_pair()
    generator, discriminator = new_pair(sharing)
    parts = load((generator, discriminator), own)
    assert torch.equal(generator.word_embeddings, own[WORD_EMBEDDINGS])
    assert f"({sharing})" in parts["discriminator's E_D"].origin
    if sharing == "nes":
        assert torch.equal(discriminator.state_dict()[WORD_EMBEDDINGS], own[WORD_EMBEDDINGS])
    else:
        with pytest.raises(ValueError, match="es has one table, but these two checkpoints have two"):
            load(new_pair(sharing), own, theirs)


def test_missing_head_is_initialised_and_half_a_head_refused():
    own, theirs = trained_pair()
    generator, discriminator = new_pair()
    initial = part_of({name: tensor.clone() for name, tensor in discriminator.state_dict().items()}, RTD_HEAD)
    parts = load((generator, discriminator), part_of(own, "deberta."), part_of(theirs, "deberta."))
    assert_same(discriminator.state_dict(), initial)
    assert parts["discriminator's RTD head"].origin == "initialised: D.bin has none"
    assert parts["generator's MLM head"].origin == "initialised: G.bin has none"
    half = {name: tensor for name, tensor in own.items() if name != f"{RTD_HEAD}dense.bias"}
    with pytest.raises(ValueError, match=r"^the discriminator's checkpoint lacks mask_predictions\.dense\.bias: "):
        load(new_pair(), half, theirs)
    half = {name: tensor for name, tensor in theirs.items() if name != f"{MLM_HEAD}bias"}
    with pytest.raises(ValueError, match=r"^the generator's checkpoint lacks lm_predictions\.lm_head\.bias: "):
        load(new_pair(), own, half)


def test_trunk_must_be_whole_and_as_deep_as_the_recipe_says():
    own, theirs = trained_pair()
    without = {name: tensor for name, tensor in own.items() if name != "deberta.embeddings.LayerNorm.bias"}
    with pytest.raises(ValueError, match=r"^the discriminator's checkpoint lacks deberta\.embeddings\.LayerNorm\.bias"):
        load(new_pair(), without)
    with pytest.raises(ValueError, match=r"^D.bin has 3 layers, model.num_hidden_layers is 4: set .*layers=3$"):
        load(new_pair(num_hidden_layers=4), own)
    with pytest.raises(ValueError, match=r"^G.bin has 2 layers, model.generator_num_hidden_layers is 3: set .*=2$"):
        load(new_pair(generator_layers=3), own, theirs)
    with pytest.raises(ValueError, match=r"^G.bin lacks deberta\.embeddings\.word_embeddings\.weight: "):
        load(new_pair(), own, part_of(theirs, LAYERS, MLM_HEAD))


def test_tensors_of_other_modules_are_named():
    own, _ = trained_pair()
    own |= {"pooler.dense.weight": torch.zeros(32, 32), "classifier.bias": torch.zeros(2)}
    parts = load(new_pair(), own)
    name = "not used of the discriminator's"
    assert parts[name] == Part(name, 2, "classifier.bias, pooler.dense.weight")
    assert list(parts)[-1] == name


@pytest.mark.parametrize("legacy", [True, False])
def test_mlm_head_of_transformers_predicts_the_same(legacy: bool):
    config = tiny_config()
    theirs = hf_config(config)
    theirs.legacy = legacy
    reference = scramble(DebertaV2ForMaskedLM(theirs)).eval()
    own = {name: tensor.clone() for name, tensor in reference.state_dict().items()}
    generator, discriminator = new_pair(generator_layers=3)
    parts = load((generator, discriminator), own)
    assert parts["generator's MLM head"].num_tensors == 5
    states = torch.randn(7, config.hidden_size)
    expected = (
        reference.cls(states)
        if legacy
        else reference.lm_predictions(states, reference.deberta.embeddings.word_embeddings)
    )
    got = generator.lm_predictions["lm_head"].logits(states, generator.word_embeddings)
    assert torch.equal(got, expected)
    tied = "cls.predictions.decoder.weight" if legacy else "lm_predictions.lm_head.weight"  # transformers 5.17 has both
    own[tied] = reference.deberta.embeddings.word_embeddings.weight.detach().clone()
    load(new_pair(generator_layers=3), own)
    own[tied] += 1
    with pytest.raises(ValueError, match=f"{re.escape(tied)} is not its .*one matrix"):
        load(new_pair(), own)
    if not legacy:
        own["cls.predictions.bias"] = own[f"{MLM_HEAD}bias"]
        with pytest.raises(ValueError, match=r"holds lm_predictions\.lm_head\.bias under two names: remove one"):
            load(new_pair(), own)


def test_longer_position_table_repeats_the_rows_that_were_learnt():
    table = torch.arange(5.0)[:, None]
    assert grow_positions(table, 12)[:, 0].tolist() == [0, 1, 2, 3, 4, 1, 2, 3, 1, 2, 3, 1]
    assert grow_positions(table, 3)[:, 0].tolist() == [0, 1, 2]
    own, theirs = trained_pair()
    pair = new_pair(max_position_embeddings=200)
    parts = load(pair, own, theirs)
    grown = pair[0].state_dict()[DECODER_POSITIONS]
    assert torch.equal(grown[:160], theirs[DECODER_POSITIONS])
    assert torch.equal(grown[160:], theirs[DECODER_POSITIONS][1:41])
    assert parts["mask decoder's positions"].origin == "G.bin, 160 rows grown to 200"
    pair = new_pair(max_position_embeddings=100)
    assert load(pair, own, theirs)["mask decoder's positions"].origin == "G.bin, its first 100 of 160 rows"
    assert torch.equal(pair[0].state_dict()[DECODER_POSITIONS], theirs[DECODER_POSITIONS][:100])
