"""Live tokens to a flat run and back."""

import pytest
import torch
from torch import Tensor

from disentangled.finetune.live_tokens import Rows, find_rows, pad, unpad


def live_of(*rows: str) -> Tensor:
    """ "110" is a row of two live tokens and a padded one."""
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


def test_rows_are_found_where_padding_ends_them() -> None:
    rows = find_rows(live_of("110", "111", "100"))
    assert isinstance(rows, Rows)
    assert rows.places.tolist() == [0, 1, 3, 4, 5, 6]
    assert rows.cu_seqlens.tolist() == [0, 2, 5, 6] and rows.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        (("011", "111"), "padding before a live token"),
        (("101", "111"), "padding before a live token"),
        (("000", "111"), "no live token"),
    ],
)
def test_what_cannot_be_a_run_is_named(rows: tuple[str, ...], reason: str) -> None:
    found = find_rows(live_of(*rows))
    assert isinstance(found, str) and reason in found


def test_run_keeps_order_and_padding_comes_back_as_zeros() -> None:
    live = live_of("110", "111", "100")
    rows = find_rows(live)
    states = torch.arange(1.0, 10.0).view(3, 3, 1)
    run = unpad(states, rows.places)
    assert run.view(-1).tolist() == [1, 2, 4, 5, 6, 7]
    assert torch.equal(pad(run, rows.places, (3, 3)), states * live[..., None])


def test_gradients_are_the_adjoints_also_twice() -> None:
    rows = find_rows(live_of("110", "111"))
    states = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: unpad(x, rows.places), states)
    run = torch.randn(1, 5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pad(x, rows.places, (2, 3)), run)
    assert torch.autograd.gradgradcheck(lambda x: pad(x, rows.places, (2, 3)) ** 2, run)
