"""Initial weights: their distribution, and that each depends on nothing but the seed, its name and its place."""

import zlib

import pytest
import torch
from torch import nn

from disentangled.model import initialize
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.initialize import draw_normals, initialize_weights
from tests.model.tiny_models import MASK_ID, tiny_config

RANGE = 0.05


def models(seed: int = 0, **changes: object) -> dict[str, nn.Module]:
    config = tiny_config(initializer_range=RANGE, conv_kernel_size=3, share_att_key=False, **changes)
    pair: dict[str, nn.Module] = {"generator": Generator(config, MASK_ID, seed)}
    return pair | {sharing: Discriminator(config, sharing, seed) for sharing in ("gdes", "es", "nes")}


@pytest.mark.parametrize("name", ["generator", "gdes", "es", "nes"])
def test_every_parameter_is_filled(name):
    model = models()[name]
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    for parameter in model.parameters():
        nn.init.constant_(parameter, torch.nan)
    initialize_weights(model, RANGE, seed=0)
    assert all(torch.equal(value, fresh[key]) for key, value in model.state_dict().items())
    assert all(value.isfinite().all() for value in fresh.values())


@pytest.mark.parametrize("name", ["generator", "gdes", "es", "nes"])
def test_parameters_have_their_kinds_values(name):
    for key, parameter in models()[name].state_dict().items():
        if "LayerNorm.weight" in key:
            assert (parameter == 1.0).all(), key
        elif key.endswith("bias") or "delta" in key:
            assert (parameter == 0.0).all(), key
        else:
            # five standard errors of the deviation and of the mean of n normals
            num_values = parameter.numel()
            assert abs(float(parameter.std()) / RANGE - 1) < 5 / (2 * num_values) ** 0.5, key
            assert abs(float(parameter.mean())) < 5 * RANGE / num_values**0.5, key


def test_draws_are_normal_and_uncorrelated():
    num_values = 100_000
    values = draw_normals(num_values, seed=3, key=17).double()
    for bound, share in ((0.5, 0.3829249), (1.0, 0.6826895), (2.0, 0.9544997), (3.0, 0.9973002)):
        within = float((values.abs() < bound).double().mean())
        assert abs(within - share) < 5 * (share * (1 - share) / num_values) ** 0.5
    for shift in (1, 2, 3, 4):  # the four values of one call come in pairs from shared words
        products, squares = ((values**power)[shift:] @ (values**power)[:-shift] / num_values for power in (1, 2))
        assert abs(float(products)) < 5 / num_values**0.5
        assert abs(float(squares) - 1) < 5 * 8**0.5 / num_values**0.5  # x^2 y^2 has variance 8


def test_trunk_starts_alike_for_every_sharing():
    trunks = [
        {key: value for key, value in model.state_dict().items() if "word_embeddings" not in key}
        for name, model in models(seed=4).items()
        if name != "generator"
    ]
    assert trunks[0].keys() == trunks[1].keys() == trunks[2].keys()
    assert all(torch.equal(trunks[0][key], other[key]) for key in trunks[0] for other in trunks[1:])


def test_values_do_not_depend_on_order_or_company(monkeypatch):
    deep, shallow = models(num_hidden_layers=3)["nes"], models(num_hidden_layers=2)["nes"]
    deeper = deep.state_dict()
    assert all(torch.equal(value, deeper[key]) for key, value in shallow.state_dict().items())
    torch.manual_seed(5)
    monkeypatch.setattr(initialize, "CALLS_AT_ONCE", 37)
    again = models(num_hidden_layers=3)["nes"].state_dict()
    assert all(torch.equal(value, again[key]) for key, value in deeper.items())


def test_values_change_with_seed_and_name():
    first, second = models(seed=0)["nes"].state_dict(), models(seed=1)["nes"].state_dict()
    drawn = [key for key, value in first.items() if value.any() and not (value == 1.0).all()]
    assert len(drawn) > 20
    assert not any(torch.equal(first[key], second[key]) for key in drawn)
    square = [first[key] for key in drawn if first[key].shape == (32, 32)]
    assert not any(torch.equal(value, other) for index, value in enumerate(square) for other in square[:index])


def test_names_of_the_largest_model_have_keys_of_their_own():
    names = {name for model in models(num_hidden_layers=48).values() for name, _ in model.named_parameters()}
    assert len({zlib.crc32(name.encode()) for name in names}) == len(names)
