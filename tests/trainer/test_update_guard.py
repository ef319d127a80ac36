import math

import pytest
import torch

from disentangled.trainer.update_guard import FIRST_UPDATES, NormMean, UpdateGuard
from tests.host_waits import HostWaits

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")),
]


class Setup:
    """One weight under SGD of rate 1, so that an update with norm n moves it by -n."""

    def __init__(
        self, spike_factor: float = 10.0, is_fused: bool = True, clipping: float = 0.0, device: str = "cpu"
    ) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(1, device=device))
        self.norm = torch.zeros((), device=device)
        self.optimizer = torch.optim.SGD([self.weight], lr=1.0, fused=is_fused)
        self.guard = UpdateGuard(self.optimizer, lambda: self.norm, spike_factor, clipping)

    def update(self, norm: float, num_groups: int = 1) -> str:
        """One update whose gradient has this norm; returns why it was refused."""
        self.set_gradient(norm)
        return self.guard.watch(lambda: [self.optimizer.step() for _ in range(num_groups)]).refusal()

    def set_gradient(self, norm: float) -> None:
        self.norm.fill_(norm)
        self.weight.grad = torch.full_like(self.weight, norm)


@pytest.mark.parametrize("is_fused", [True, False])
class TestBothWays:
    """What the optimizer is told by a flag on its device, and what the host decides, come to the same."""

    def test_sound_updates_are_made(self, is_fused: bool) -> None:
        setup = Setup(is_fused=is_fused)
        assert setup.guard.decides_on_device == is_fused
        assert [setup.update(2.0) for _ in range(FIRST_UPDATES + 5)] == [""] * (FIRST_UPDATES + 5)
        assert setup.weight.item() == -2.0 * (FIRST_UPDATES + 5)
        assert setup.guard.norms == NormMean(2.0, FIRST_UPDATES + 5)

    @pytest.mark.parametrize("norm", [math.nan, math.inf, -1.0])
    def test_update_that_is_not_finite_is_refused_and_leaves_no_trace(self, norm: float, is_fused: bool) -> None:
        setup = Setup(is_fused=is_fused, clipping=3.0)
        setup.update(1.0)
        assert setup.update(norm) == "its gradient is not finite"  # DeepSpeed says -1 for both others
        assert setup.weight.item() == -1.0 and setup.guard.norms == NormMean(1.0, 1)
        assert float(setup.guard.norm) == math.inf
        assert setup.update(1.0) == "" and setup.weight.item() == -2.0

    def test_spike_is_refused_once_the_mean_means_something(self, is_fused: bool) -> None:
        setup = Setup(is_fused=is_fused)
        for _ in range(FIRST_UPDATES - 1):
            setup.update(1.0)
        assert setup.update(50.0) == ""  # the hundredth: the mean of 99 is none yet
        setup = Setup(is_fused=is_fused)
        for _ in range(FIRST_UPDATES):
            setup.update(1.0)
        assert setup.update(10.0) == ""
        before = setup.weight.item()
        assert "its gradient's norm is 50, the mean 1.09" in setup.update(50.0)
        assert setup.weight.item() == before

    def test_all_steps_of_one_update_are_decided_alike(self, is_fused: bool) -> None:
        setup = Setup(is_fused=is_fused)
        assert setup.update(1.0, num_groups=3) == "" and setup.weight.item() == -3.0
        assert setup.guard.norms.num_updates == 1
        assert setup.update(math.nan, num_groups=3) and setup.weight.item() == -3.0

    def test_gradient_longer_than_the_limit_is_cut_to_it(self, is_fused: bool) -> None:
        setup = Setup(is_fused=is_fused, clipping=0.5)
        assert setup.update(0.25) == "" and setup.weight.item() == -0.25
        assert setup.update(8.0) == "" and abs(setup.weight.item() + 0.75) < 1e-6
        assert float(setup.guard.norm) == 8.0


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


def test_update_that_the_engine_gave_up_itself_is_refused() -> None:
    setup = Setup()
    assert setup.update(1.0, num_groups=0) == "its gradient is not finite"
    assert setup.guard.decision is not None and setup.guard.decision.is_deepspeeds
    assert float(setup.guard.norm) == math.inf
    setup.update(1.0)
    assert not setup.guard.decision.is_deepspeeds


def test_mean_goes_on_from_a_checkpoint() -> None:
    setup = Setup()
    setup.guard.norms = NormMean(2.0, FIRST_UPDATES)
    assert "the mean 2" in setup.update(21.0)
    assert setup.guard.norms == NormMean(2.0 + 0.01 * (20.0 - 2.0), FIRST_UPDATES + 1)


@pytest.mark.parametrize("device", DEVICES)
def test_decisions_are_read_when_the_device_is_far_ahead(device: str) -> None:
    setup = Setup(device=device, clipping=1.0)
    decisions = []
    for norm in (1.0, math.nan, 0.5):
        setup.set_gradient(norm)
        decisions.append(setup.guard.watch(setup.optimizer.step))
    assert [decision.refusal() for decision in decisions] == ["", "its gradient is not finite", ""]
    assert abs(setup.weight.item() + 1.5) < 1e-5


def test_host_waits_only_for_optimizers_that_take_no_flag() -> None:
    for is_fused in (True, False):
        setup = Setup(is_fused=is_fused, clipping=1.0)
        setup.set_gradient(4.0)
        with HostWaits() as waits:
            setup.guard.watch(setup.optimizer.step)
        assert bool(waits.found) != is_fused


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_nothing_waits_for_a_gpu() -> None:
    setup = Setup(device="cuda", clipping=1.0)
    setup.update(1.0)
    setup.set_gradient(4.0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        setup.guard.watch(setup.optimizer.step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
