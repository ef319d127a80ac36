"""Nothing that makes the host wait for a device: operations that read a value, or whose result's size is a value.

They are seen on a CPU, by name, so no GPU is needed; `torch.cuda.set_sync_debug_mode` would say the same of a GPU.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from disentangled.kernels.masked_lm_loss import eager
from disentangled.model.discriminator import DiscriminatorOutput
from disentangled.model.rtd_head import ReplacedTokenHead, rtd_loss_sum
from disentangled.trainer.metrics import MetricSums
from tests.kernels.masked_lm_case import masked_lm_case
from tests.model.tiny_models import packed_run, scramble, tiny_config

WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "is_nonzero", "equal"}


class HostWaits(TorchDispatchMode):
    """Collects the names of the operations that wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function._schema.name.removeprefix("aten::")
        is_indexed_by_bool = name.startswith("index") and any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool
            for indices in arguments
            if isinstance(indices, list | tuple)
            for x in indices
        )
        if name in WAITING or is_indexed_by_bool:
            self.found.add(name)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: (x > 0).nonzero()])
def test_what_waits_is_found(wait):
    with HostWaits() as waits:
        wait(torch.ones(3))
    assert waits.found


def test_rtd_head_loss_and_metrics_never_wait():
    config, layout = tiny_config(), packed_run((20, 10), tail=3)
    head = scramble(ReplacedTokenHead(config))
    states, is_replaced = torch.randn(33, config.hidden_size, requires_grad=True), torch.arange(33) % 7 == 0
    sums = MetricSums(torch.device("cpu"))
    with HostWaits() as waits:
        logits = head(states, layout)
        loss = rtd_loss_sum(logits, is_replaced, layout.live)
        loss.backward()
        sums.add_discriminator(DiscriminatorOutput(loss, logits, is_replaced), layout.live)
    assert not waits.found
    metrics = sums.take()
    assert 0 < metrics["rtd_auc"] < 1 and metrics["replaced_fraction"] == 5 / 30


def test_loss_and_draw_in_torch_never_wait():
    case = masked_lm_case(20, 300)
    hidden, table, bias = case.tensors
    gradients = eager.Gradients(hidden, table, torch.float32)
    with HostWaits() as waits:
        eager.score(hidden, table, bias, case.labels, case.draw, gradients)
    assert not waits.found
    assert gradients.table.any()
