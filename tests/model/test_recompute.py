"""Activation checkpointing changes no bit: loss and every gradient, dropout and the convolution included."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from disentangled.model import recompute
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.noise import discriminator_noise, generator_noise
from tests.model.tiny_models import MASK_ID, gradients, packed_run, sampling, scramble, text_ids, tiny_config

LENGTHS, TAIL = (9, 1, 23), 4
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}


@pytest.fixture(params=[{}, {"conv_kernel_size": 3}], ids=["v3", "convolution"])
def models(request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, nn.Module]]:
    config = tiny_config(**request.param, **DROPOUT)
    yield scramble(Generator(config, MASK_ID)), scramble(Discriminator(config, "gdes"))


def run_generator(model: nn.Module) -> Tensor:
    layout = packed_run(LENGTHS, TAIL)
    masked_rows = torch.tensor([2, 5, 9, 11, 30])
    output = model(text_ids(layout.num_tokens), layout, masked_rows, generator_noise(3, 7), sampling())
    loss: Tensor = output.mlm_loss_sum
    return loss


def run_discriminator(model: nn.Module) -> Tensor:
    layout = packed_run(LENGTHS, TAIL)
    rows = torch.linspace(-1, 1, layout.num_tokens * 32).view(-1, 32)
    ids = text_ids(layout.num_tokens, seed=2), text_ids(layout.num_tokens, seed=1)
    loss: Tensor = model(*ids, layout, discriminator_noise(3, 7), rows).rtd_loss_sum
    return loss


@pytest.mark.parametrize("number", [0, 1], ids=["generator", "discriminator"])
def test_recomputed_gradients_are_the_same_bit_for_bit(models: tuple[nn.Module, nn.Module], number: int) -> None:
    model, run = models[number], (run_generator, run_discriminator)[number]
    answers = []
    for recomputes in (False, True):
        model.deberta.encoder.recompute = recomputes
        model.zero_grad()
        loss = run(model)
        loss.backward()
        answers.append((loss, gradients(model)))
    (loss, expected), (again, found) = answers
    assert torch.equal(loss, again)
    assert [name for name, gradient in expected.items() if not torch.equal(gradient, found[name])] == []


@pytest.mark.parametrize("number", [0, 1], ids=["generator", "discriminator"])
def test_recomputing_runs_every_layer_twice_and_keeps_little(models: tuple[nn.Module, nn.Module], number: int) -> None:
    model, run = models[number], (run_generator, run_discriminator)[number]
    calls, kept = [0], {}
    for layer in model.deberta.encoder.layer:
        layer.intermediate.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    for recomputes in (False, True):
        model.deberta.encoder.recompute = recomputes
        calls[0] = 0
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, s=sizes: (s.append(x.numel()), x)[1], lambda x: x):
            loss = run(model)
        loss.backward()
        kept[recomputes] = (sum(sizes), calls[0])
    assert kept[True][1] == 2 * kept[False][1]
    assert kept[True][0] < kept[False][0] / 3


def test_evaluation_recomputes_nothing(models: tuple[nn.Module, nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recompute, "checkpoint", None)
    models[1].deberta.encoder.recompute = True
    with torch.no_grad():
        run_discriminator(models[1])
