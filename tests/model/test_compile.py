"""torch.compile changes rounding only. By its tracing and its autograd, not by inductor, which needs a C++ compiler."""

import pytest
import torch
from torch import Tensor, nn

from disentangled.model.compile import compile_layers
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.noise import discriminator_noise, generator_noise
from tests.model.tiny_models import EXACT, MASK_ID, gradients, packed_run, sampling, scramble, text_ids, tiny_config

DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.3}


def run(model: nn.Module, step: int, lengths: tuple[int, ...]) -> Tensor:
    layout = packed_run(lengths, tail=4)
    ids = text_ids(layout.num_tokens)
    if isinstance(model, Generator):
        masked_rows = torch.tensor([2, 5, 9, 11][: len(lengths) + 1])
        loss: Tensor = model(ids, layout, masked_rows, generator_noise(3, step), sampling()).mlm_loss_sum
        return loss
    rows = torch.linspace(-1, 1, ids.numel() * 32, dtype=torch.float64).view(-1, 32)
    loss = model(text_ids(ids.numel(), seed=2), ids, layout, discriminator_noise(3, step), rows).rtd_loss_sum
    return loss


@pytest.mark.slow
def test_compiled_models_compute_the_same_with_few_variants() -> None:
    config = tiny_config(**DROPOUT)
    models = scramble(Generator(config, MASK_ID)).double(), scramble(Discriminator(config, "gdes")).double()
    answers: list[list[tuple[Tensor, dict[str, Tensor]]]] = []
    for is_compiled in (False, True):
        answers.append([])
        for model in models:
            if is_compiled:
                compile_layers(model, backend="aot_eager")
            for step, lengths in enumerate([(9, 1, 23), (12, 7), (5, 6, 7), (20,)]):
                model.zero_grad()
                loss = run(model, step, lengths)
                loss.backward()
                answers[-1].append((loss.detach(), gradients(model)))
                with torch.no_grad():
                    run(model, step, lengths)
    for (loss, expected), (again, found) in zip(*answers, strict=True):
        torch.testing.assert_close(again, loss, rtol=EXACT, atol=EXACT)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=EXACT, atol=EXACT)
    frames = torch._dynamo.utils.counters["frames"]
    assert 0 < frames["ok"] == frames["total"] < 40, frames
    assert not torch._dynamo.utils.counters["graph_break"]
