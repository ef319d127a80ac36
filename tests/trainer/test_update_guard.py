import math

import pytest
import torch

from disentangled.trainer.update_guard import FIRST_UPDATES, NormMean, UpdateGuard


class Setup:
    """One weight under SGD of rate 1, so that an update with norm n moves it by -n."""

    def __init__(self, spike_factor: float = 10.0) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.norm = 0.0
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0)
        self.guard = UpdateGuard(self.optimizer, lambda: self.norm, spike_factor)

    def update(self, norm: float, num_groups: int = 1) -> str:
        """One update whose gradient has this norm; returns why it was refused."""
        self.norm = norm
        self.weight.grad = torch.full((1,), norm)
        self.guard.watch(lambda: [self.optimizer.step() for _ in range(num_groups)])
        return self.guard.refusal


def test_sound_updates_are_made() -> None:
    setup = Setup()
    assert [setup.update(2.0) for _ in range(FIRST_UPDATES + 5)] == [""] * (FIRST_UPDATES + 5)
    assert setup.weight.item() == -2.0 * (FIRST_UPDATES + 5)
    assert setup.guard.norms == NormMean(2.0, FIRST_UPDATES + 5)


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_update_that_is_not_finite_is_refused_and_leaves_no_trace(norm: float) -> None:
    setup = Setup()
    setup.update(1.0)
    assert setup.update(norm) == "its gradient is not finite"
    assert setup.weight.item() == -1.0 and setup.guard.norms == NormMean(1.0, 1)
    assert setup.update(1.0) == "" and setup.weight.item() == -2.0


def test_spike_is_refused_once_the_mean_means_something() -> None:
    setup = Setup()
    for _ in range(FIRST_UPDATES - 1):
        setup.update(1.0)
    assert setup.update(50.0) == ""  # the hundredth: the mean of 99 is none yet
    setup = Setup()
    for _ in range(FIRST_UPDATES):
        setup.update(1.0)
    assert setup.update(10.0) == ""
    before = setup.weight.item()
    assert "its gradient's norm is 50, the mean 1.09" in setup.update(50.0)
    assert setup.weight.item() == before


def test_without_a_factor_no_finite_norm_is_a_spike() -> None:
    setup = Setup(spike_factor=0.0)
    for _ in range(FIRST_UPDATES):
        setup.update(1.0)
    assert setup.update(1e30) == ""


def test_lasting_change_of_scale_is_let_through_after_some_refusals() -> None:
    setup = Setup()
    for _ in range(FIRST_UPDATES):
        setup.update(1.0)
    refused = [bool(setup.update(20.0)) for _ in range(30)]
    assert refused.index(False) in range(5, 12) and not any(refused[refused.index(False) :])


def test_all_steps_of_one_update_are_decided_alike() -> None:
    setup = Setup()
    assert setup.update(1.0, num_groups=3) == "" and setup.weight.item() == -3.0
    assert setup.guard.norms.num_updates == 1
    assert setup.update(math.nan, num_groups=3) and setup.weight.item() == -3.0


def test_update_that_the_engine_gave_up_itself_is_refused() -> None:
    setup = Setup()
    assert setup.update(1.0, num_groups=0) == "its gradient is not finite"
    assert setup.guard.is_unseen
    setup.update(1.0)
    assert not setup.guard.is_unseen
