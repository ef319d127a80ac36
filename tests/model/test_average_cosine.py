"""The sum of unit vectors against all pairs one by one."""

import itertools

import pytest
import torch
from torch import Tensor

from disentangled.model import average_cosine as module
from disentangled.model.average_cosine import average_cosine

EPS = torch.finfo(torch.float64).eps


def pair_by_pair(table: Tensor, rows: list[int]) -> float:
    """The mean over a double loop."""
    values = table.double()
    cosines = [
        float(values[i] @ values[j] / (values[i].norm() * values[j].norm())) for i, j in itertools.combinations(rows, 2)
    ]
    return sum(cosines) / len(cosines)


@pytest.mark.parametrize("offset", [0.0, 0.1, 3.0])
@pytest.mark.parametrize("chunk_rows", [7, 1 << 13])
def test_sum_of_unit_vectors_is_all_pairs(offset: float, chunk_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", chunk_rows)
    table = torch.randn(60, 16, generator=torch.Generator().manual_seed(1)) + offset
    rows = list(range(3, 60, 2))
    found = average_cosine(table, torch.tensor(rows))
    # each of the two adds up fewer than n^2 products of 16 numbers, which are at most 1
    bound = 2 * 16 * len(rows) ** 2 * EPS
    assert found.mean == pytest.approx(pair_by_pair(table, rows), rel=0, abs=bound)
    assert found.num_zero_rows == 0


@pytest.mark.parametrize(("rows", "mean"), [([0, 1], 1.0), ([0, 2], -1.0), ([0, 3], 0.0), ([0, 1, 2], -1 / 3)])
def test_known_directions_have_their_cosine(rows: list[int], mean: float) -> None:
    table = torch.tensor([[1.0, 0.0], [20.0, 0.0], [-1e-30, 0.0], [0.0, 5.0]])
    assert average_cosine(table, torch.tensor(rows)).mean == pytest.approx(mean, abs=4 * EPS)


def test_rows_of_zeros_are_left_out_and_counted() -> None:
    table = torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    table[[2, 5]] = 0.0
    found = average_cosine(table, torch.arange(9))
    kept = average_cosine(table, torch.tensor([0, 1, 3, 4, 6, 7, 8]))
    assert found.num_zero_rows == 2 and found.mean == kept.mean is not None
    assert average_cosine(torch.zeros(5, 4), torch.arange(5)) == module.AverageCosine(None, 5)
    assert average_cosine(torch.eye(3)[:1], torch.arange(1)).mean is None


def test_rows_that_are_not_finite_are_refused() -> None:
    table = torch.ones(4, 2)
    table[3, 0] = torch.nan
    assert average_cosine(table, torch.arange(3)).mean == pytest.approx(1.0)
    with pytest.raises(ValueError, match="1 of 4 rows hold NaN"):
        average_cosine(table, torch.arange(4))
