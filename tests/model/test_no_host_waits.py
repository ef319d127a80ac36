"""The head, the losses and their metrics never make the host wait for a device (a whole step: tests/integration/)."""

import pytest
import torch

from disentangled.kernels.masked_lm_loss import eager
from disentangled.model.discriminator import DiscriminatorOutput
from disentangled.model.rtd_head import ReplacedTokenHead, rtd_loss_sum
from disentangled.trainer.metrics import MetricSums
from tests.host_waits import HostWaits
from tests.kernels.masked_lm_case import masked_lm_case
from tests.model.tiny_models import packed_run, scramble, tiny_config


@pytest.mark.parametrize("wait", [lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: (x > 0).nonzero()])
def test_what_waits_is_found(wait):
    with HostWaits() as waits:
        wait(torch.ones(3))
    assert waits.found


def test_what_waits_where_it_may_is_not():
    def may_wait():
        return torch.ones(3).sum().item()

    with HostWaits("may_wait") as waits:
        may_wait()
    assert not waits.found


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
