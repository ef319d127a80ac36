import json

import numpy as np
import pytest
import torch
from torch import Tensor

from disentangled.model.discriminator import DiscriminatorOutput
from disentangled.model.generator import GeneratorOutput
from disentangled.trainer.metrics import MetricSums, area_under_curve, balanced_accuracy

CPU = torch.device("cpu")


def judged(logits: Tensor, is_replaced: Tensor, loss: float = 0.0) -> DiscriminatorOutput:
    return DiscriminatorOutput(torch.tensor(loss), logits, is_replaced)


def generated(loss: float, correct: int = 0, sampled: int = 0) -> GeneratorOutput:
    return GeneratorOutput(
        torch.tensor(loss), torch.tensor(correct), torch.tensor(sampled), torch.zeros(0, dtype=torch.int64), None
    )


def exact_auc(scores: Tensor, is_replaced: Tensor) -> float:
    """The Mann-Whitney statistic: every pair compared, ties half."""
    replaced, original = scores[is_replaced].double(), scores[~is_replaced].double()
    above = (replaced[:, None] > original).double() + 0.5 * (replaced[:, None] == original)
    return float(above.mean())


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0, -1.0])
def test_auc_is_the_exact_rank_statistic_to_one_in_a_thousand(shift: float) -> None:
    torch.manual_seed(0)
    is_replaced = torch.rand(4000) < 0.1
    logits = torch.randn(4000) + shift * is_replaced
    sums = MetricSums(CPU)
    sums.add_discriminator(judged(logits, is_replaced), torch.ones(4000, dtype=torch.bool))
    assert sums.take()["rtd_auc"] == pytest.approx(exact_auc(logits, is_replaced), abs=1e-3)


def test_auc_of_typed_out_histograms() -> None:
    # originals at 0 1 1, replaced at 1 2: pairs won 1 + 0.5 + 0.5 and 1 + 1 + 1 of 6
    original, replaced = torch.tensor([1.0, 2.0, 0.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert area_under_curve(original, replaced) == pytest.approx(5 / 6)
    assert area_under_curve(replaced, original) == pytest.approx(1 / 6)
    assert area_under_curve(original, original * 0) == 0.5


def test_balanced_accuracy_is_the_mean_of_both_recalls() -> None:
    # probability 1/2 lies between bins 1 and 2: 3 of 4 originals and 1 of 2 replaced are right
    original, replaced = torch.tensor([1.0, 2.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 1.0, 0.0])
    assert balanced_accuracy(original, replaced) == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert balanced_accuracy(original, replaced * 0) == 0.5


def test_a_discriminator_that_calls_everything_original_scores_one_half() -> None:
    is_replaced = torch.arange(100) < 10
    sums = MetricSums(CPU)
    sums.add_discriminator(judged(torch.full((100,), -3.0), is_replaced), torch.ones(100, dtype=torch.bool))
    metrics = sums.take()
    assert (metrics["rtd_auc"], metrics["rtd_balanced_accuracy"]) == (0.5, 0.5)


def test_take_gives_means_over_tokens_and_starts_anew() -> None:
    sums = MetricSums(CPU)
    sums.add_generator(generated(6.0, correct=1, sampled=2), num_masked=2)
    sums.add_generator(generated(2.0, correct=3, sampled=0), num_masked=6)
    is_replaced = torch.tensor([True, False, True, False])
    live = torch.tensor([True, True, False, False])
    sums.add_discriminator(judged(torch.zeros(4), is_replaced, loss=3.0), live)
    metrics = sums.take()
    assert metrics["mlm_loss"] == 1.0
    assert metrics["mlm_accuracy"] == 0.5
    assert metrics["sampled_accuracy"] == 0.25
    assert metrics["rtd_loss"] == 1.5
    assert metrics["replaced_fraction"] == 0.5  # padding is not counted
    assert sums.take()["mlm_loss"] == 0.0


def test_sums_do_not_depend_on_the_order_of_addition() -> None:
    # what resuming between two log lines, or another number of ranks, changes
    losses = (np.random.default_rng(0).random(1000) * 1000).astype(np.float32).tolist()
    results = []
    for order in (losses, losses[::-1], sorted(losses)):
        sums = MetricSums(CPU)
        for loss in order:
            sums.add_generator(generated(loss), 1)
            sums.add_discriminator(judged(torch.zeros(1), torch.zeros(1, dtype=torch.bool), loss), torch.ones(1))
        results.append(sums.total())
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    rounding = 1000 * 2.0**-21  # each of 1000 sums by at most half a step
    assert float(results[0][0]) == pytest.approx(sum(losses), abs=rounding)


def test_restored_sums_go_on_where_they_were_saved() -> None:
    torch.manual_seed(0)
    straight, first, second = (MetricSums(CPU) for _ in range(3))
    for number in range(10):
        output = judged(torch.randn(8), torch.rand(8) < 0.5, loss=float(torch.rand(())))
        straight.add_discriminator(output, torch.ones(8))
        if number == 5:
            second.restore(json.loads(json.dumps(first.total().tolist())))
        (first if number < 5 else second).add_discriminator(output, torch.ones(8))
    assert straight.take() == second.take()
