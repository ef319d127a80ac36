"""torch.compile changes rounding only. By its tracing and its autograd, not by inductor, which needs a C++ compiler."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from disentangled.kernels.disentangled_attention import dispatch
from disentangled.kernels.disentangled_attention import op as attention_op
from disentangled.kernels.hidden_dropout import op as dropout_op
from disentangled.kernels.residual_norm import op as norm_op
from disentangled.model import compile as compile_module
from disentangled.model.compile import compile_layers
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.layer import Layer, hidden_states
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
    torch._dynamo.reset()
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
    assert 0 < frames["ok"] == frames["total"] <= 14, frames
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused kernels are what a call gets that names none, in Triton's interpreter."""
    if not dispatch.IS_INTERPRETED:
        pytest.skip("needs Triton's interpreter")
    for op in (attention_op, dropout_op):
        monkeypatch.setattr(
            op, "choose_implementation", lambda asked, *others, choose=op.choose_implementation: asked or "triton"
        )
    for module in (norm_op, compile_module):
        monkeypatch.setattr(module, "choose_implementation", dropout_op.choose_implementation)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("precision", ["fp32", pytest.param("autocast", marks=pytest.mark.slow)])
def test_layers_over_fused_kernels_are_one_graph(precision: str) -> None:
    """Not another one for each layer, length and number of documents, and not cut where kernels are called."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    layer = scramble(Layer(tiny_config(**DROPOUT, num_attention_heads=1, hidden_size=16, intermediate_size=16)))
    table = torch.randn(16, 16, generator=torch.Generator().manual_seed(7))
    answers: list[list[list[Tensor]]] = []
    for is_compiled in (False, True):
        answers.append([])
        if is_compiled:
            compile_layers(nn.ModuleList([layer]), backend="aot_eager")
        for number, lengths in enumerate([(3, 2), (2, 1, 3)]):
            layout = packed_run(lengths, tail=1)
            states = torch.linspace(-1, 1, layout.num_tokens * 16).view(-1, 16).requires_grad_()
            layer.zero_grad()
            with torch.autocast("cpu", torch.float16) if precision == "autocast" else nullcontext():
                made = layer(hidden_states(states), table, layout, discriminator_noise(3, number), number)
            sum((x * x.detach()).sum() for x in set(made)).backward()
            answers[-1].append([*(x.detach() for x in made), states.grad, *gradients(layer).values()])
    for expected, found in zip(*answers, strict=True):
        for one, other in zip(expected, found, strict=True):
            rounding = 0.0 if precision == "fp32" else float(one.abs().max()) * 2**-10  # a digit of float16
            torch.testing.assert_close(other, one, rtol=0.0, atol=rounding)
    counters = torch._dynamo.utils.counters
    assert counters["frames"]["ok"] == counters["frames"]["total"] == 1, counters["frames"]
    assert not counters["graph_break"]
