"""The RTD head and its loss against their formulas, written document by document and token by token."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from disentangled.model.discriminator import Discriminator
from disentangled.model.layout import padded_layout
from disentangled.model.rtd_head import ReplacedTokenHead, rtd_loss_sum
from tests.model.tiny_models import largest_error, packed_run, padded_batch, scramble, text_ids, tiny_config


def judge_plainly(head: ReplacedTokenHead, document: Tensor) -> Tensor:
    """Logits [N] of one document's states [N, D]: LayerNorm(h + h_CLS), dense, gelu, classifier."""
    summed = document + document[0]
    centred = summed - summed.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + head.LayerNorm.eps).sqrt()
    normed = normed * head.LayerNorm.weight + head.LayerNorm.bias
    hidden = normed @ head.dense.weight.T + head.dense.bias
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    return (hidden @ head.classifier.weight.T + head.classifier.bias)[:, 0]


def test_head_adds_each_documents_own_first_state():
    head = scramble(ReplacedTokenHead(tiny_config())).double()
    lengths = (4, 1, 7)
    states = torch.randn(14, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = head(states, packed_run(lengths, tail=2))
    expected = torch.cat([judge_plainly(head, document) for document in states[:12].split(lengths)])
    assert largest_error(logits[:12], expected) <= 1e-12  # sums of 32 terms of size 1


def test_head_adds_each_padded_rows_first_state():
    head = scramble(ReplacedTokenHead(tiny_config())).double()
    states = torch.randn(3, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    logits = head(states.view(15, 32), padded_layout(torch.ones(3, 5)))
    expected = torch.cat([judge_plainly(head, document) for document in states])
    assert largest_error(logits, expected) <= 1e-12


def test_logits_of_half_precision_come_in_float32():
    head = ReplacedTokenHead(tiny_config()).bfloat16()
    assert head(torch.randn(4, 32).bfloat16(), packed_run((4,))).dtype == torch.float32


def test_loss_is_the_log_likelihood_of_live_tokens():
    logits = torch.tensor([0.3, -1.2, 2.0, 0.5], dtype=torch.float64)
    is_replaced = torch.tensor([True, False, False, True])
    live = torch.tensor([True, True, True, False])
    chance = 1 / (1 + (-logits).exp())
    expected = -(chance[0].log() + (1 - chance[1]).log() + (1 - chance[2]).log())
    assert rtd_loss_sum(logits, is_replaced, live).item() == pytest.approx(expected.item(), rel=1e-12)


def test_loss_is_finite_for_certain_logits():
    logits = torch.tensor([1e4, -1e4])
    assert rtd_loss_sum(logits, torch.tensor([False, True]), torch.tensor([True, True])).item() == 2e4


def test_discriminator_labels_what_differs_and_counts_special_tokens():
    model = scramble(Discriminator(tiny_config(), "nes")).double()
    original = text_ids(12)
    corrupted = original.clone()
    corrupted[[3, 9]] = torch.tensor([5, 6]) + (original[[3, 9]] == torch.tensor([5, 6])).long() * 2
    layout = packed_run((7, 3), tail=2)
    output = model(corrupted, original, layout, None)
    assert output.is_replaced.nonzero().flatten().tolist() == [3, 9]
    assert output.logits.shape == (12,)
    labels = torch.zeros(12, dtype=torch.float64).index_fill(0, torch.tensor([3, 9]), 1.0)
    # all ten live tokens, [CLS] of both documents among them; none of the padding
    expected = F.binary_cross_entropy_with_logits(output.logits[:10], labels[:10], reduction="sum")
    assert output.rtd_loss_sum.item() == pytest.approx(expected.item(), rel=1e-12)


def test_every_discriminator_parameter_gets_a_gradient():
    ids, mask = padded_batch((9, 4))
    model = scramble(Discriminator(tiny_config(conv_kernel_size=3), "nes"))
    model(ids.view(-1), ids.view(-1), padded_layout(mask), None).rtd_loss_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
