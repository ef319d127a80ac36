import itertools

import pytest
import torch
from torch import Tensor

from disentangled.trainer.adamw import AdamW, Piece

RATE, BETAS, EPS, DECAY = 0.01, (0.9, 0.98), 1e-6, 0.1
SHAPES = [(3, 4), (7,), (5, 2)]
NUM_STEPS = 6
# float64 against other ways to write the same sums
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def gradients_of(step: int) -> list[Tensor]:
    """Small ones, and from the fourth step on a hundred times larger ones: what clipping is for."""
    source = torch.Generator().manual_seed(step)
    factor = 1.0 if step < 3 else 100.0
    return [factor * torch.randn(shape, generator=source, dtype=torch.float64) for shape in SHAPES]


def first_weights() -> list[Tensor]:
    source = torch.Generator().manual_seed(99)
    return [torch.randn(shape, generator=source, dtype=torch.float64) for shape in SHAPES]


def run(optimizer: torch.optim.Optimizer, weights: list[Tensor]) -> list[Tensor]:
    for step in range(NUM_STEPS):
        for weight, gradient in zip(weights, gradients_of(step), strict=True):
            weight.grad = gradient
        optimizer.step()
    return weights


def make(weights: list[Tensor], **switches: bool) -> AdamW:
    return AdamW(weights, RATE, BETAS, EPS, DECAY, **switches)


def stable_adamw(bias_correction: bool, clip_updates: bool = True) -> list[Tensor]:
    """Algorithm 2 of arXiv 2304.13013 line by line: the correction is in the betas."""
    weights = first_weights()
    means, squares = ([torch.zeros_like(weight) for weight in weights] for _ in range(2))
    for step in range(1, NUM_STEPS + 1):
        beta1, beta2 = (b * (1 - b ** (step - 1)) / (1 - b**step) if bias_correction else b for b in BETAS)
        for i, gradient in enumerate(gradients_of(step - 1)):
            means[i] = beta1 * means[i] + (1 - beta1) * gradient
            squares[i] = beta2 * squares[i] + (1 - beta2) * gradient**2
            rms = (gradient**2 / squares[i].clamp(min=EPS**2)).mean().sqrt()
            rate = RATE / max(1.0, float(rms)) if clip_updates else RATE
            weights[i] = weights[i] - rate * DECAY * weights[i] - rate * means[i] / (squares[i].sqrt() + EPS)
    return weights


def test_with_bias_correction_it_is_torchs() -> None:
    weights = run(make(own := first_weights()), own)
    theirs = first_weights()
    expected = run(torch.optim.AdamW(theirs, RATE, BETAS, EPS, DECAY), theirs)
    for weight, other in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight, other, **CLOSE)


@pytest.mark.parametrize(("bias_correction", "clip_updates"), list(itertools.product([True, False], repeat=2)))
def test_updates_are_those_of_the_algorithm_written_down(bias_correction: bool, clip_updates: bool) -> None:
    weights = run(make(own := first_weights(), bias_correction=bias_correction, clip_updates=clip_updates), own)
    for weight, other in zip(weights, stable_adamw(bias_correction, clip_updates), strict=True):
        torch.testing.assert_close(weight, other, **CLOSE)


def test_switches_change_the_updates() -> None:
    results = [stable_adamw(*switches) for switches in itertools.product([True, False], repeat=2)]
    for one, other in itertools.combinations(results, 2):
        assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(one, other, strict=True))


def test_cut_parameters_are_clipped_as_whole_ones() -> None:
    # the three laid end to end and cut in two, as ZeRO-1 does for two ranks: the second parameter lies on both sides
    whole = run(make(own := first_weights(), clip_updates=True), own)
    halves = [half.clone() for half in torch.cat([weight.flatten() for weight in first_weights()]).chunk(2)]
    optimizer = make(halves, clip_updates=True)
    called: list[Tensor] = []

    def add_up(totals: Tensor) -> Tensor:
        called.append(totals)
        return totals

    pieces = {
        halves[0]: [Piece(0, 0, 12), Piece(1, 12, 3)],
        halves[1]: [Piece(1, 0, 4), Piece(2, 4, 10)],
    }
    optimizer.know_pieces(pieces, [12, 7, 10], add_up)
    for step in range(NUM_STEPS):
        flat = torch.cat([gradient.flatten() for gradient in gradients_of(step)])
        halves[0].grad, halves[1].grad = flat[:15], flat[15:]
        optimizer.step()
    torch.testing.assert_close(torch.cat(halves), torch.cat([weight.flatten() for weight in whole]), **CLOSE)
    assert len(called) == NUM_STEPS


def test_state_is_restored() -> None:
    straight = run(make(own := first_weights(), clip_updates=True), own)
    weights = first_weights()
    optimizer = make(weights, clip_updates=True)
    for step in range(NUM_STEPS):
        if step == 3:
            state = optimizer.state_dict()
            optimizer = make(weights, clip_updates=True)
            optimizer.load_state_dict(state)
        for weight, gradient in zip(weights, gradients_of(step), strict=True):
            weight.grad = gradient
        optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(weights, straight, strict=True))
