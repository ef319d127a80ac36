"""Drawn ids: their distribution, their key, and what they never are."""

import pytest
import torch
from torch import Tensor

from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.masked_lm_loss import Draw, draw, eager, masked_lm_loss
from disentangled.kernels.masked_lm_loss.reference import draw_ids
from tests.kernels.masked_lm_case import masked_lm_case

NUM_IDS = 300  # two full blocks of ids and a part of one
IMPLEMENTATIONS = ["reference", "torch"]


def some_banned(*ids: int) -> Tensor:
    banned = torch.zeros(NUM_IDS, dtype=torch.bool)
    banned[list(ids)] = True
    return banned


def drawn_from(logits: Tensor, num_draws: int, banned: Tensor, temperature: float = 1.0) -> Tensor:
    """Ids for num_draws rows that all have these logits [V]: hidden is zero and the bias is the logits."""
    flat = torch.arange(num_draws)
    how = Draw(9, Stream.REPLACEMENT, flat // 64, flat % 64, banned, temperature)
    hidden, table = torch.zeros(num_draws, 1), torch.zeros(NUM_IDS, 1)
    return masked_lm_loss(hidden, table, logits, flat * 0, how, implementation="torch").drawn


def chi_square_excess(drawn: Tensor, logits: Tensor, banned: Tensor, temperature: float) -> float:
    """Chi-square against the softmax of the ids not banned, in standard deviations above its mean."""
    expected = len(drawn) * (logits.double() / temperature).masked_fill(banned, -torch.inf).softmax(-1)[~banned]
    assert expected.min() > 5  # below, chi-square is no approximation
    counts = drawn.bincount(minlength=NUM_IDS)
    assert not counts[banned].any()
    freedom = len(expected) - 1
    return float((((counts[~banned] - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_drawn_ids_follow_the_softmax(temperature: float) -> None:
    logits = temperature * torch.linspace(-1.0, 1.0, NUM_IDS).roll(77)
    banned = some_banned(0, 1, 130, NUM_IDS - 1)
    drawn = drawn_from(logits, 20_000, banned, temperature)
    assert chi_square_excess(drawn, logits, banned, temperature) < 5
    assert chi_square_excess(drawn, logits, banned, temperature * 1.3) > 5  # so many draws tell temperatures apart


def test_banned_ids_are_never_drawn_and_the_rest_keep_their_odds() -> None:
    banned = some_banned(*range(128, 256), 3, 290)  # the whole second block
    logits = torch.zeros(NUM_IDS)
    logits[banned] = 300.0  # would otherwise take every draw, and hide all others in the sum
    logits[7] = 1.0
    drawn = drawn_from(logits, 5_000, banned)
    assert chi_square_excess(drawn, logits, banned, 1.0) < 5


@pytest.mark.parametrize("num_ids", [101, 128, 1000])
def test_torch_draws_what_the_reference_draws(num_ids: int) -> None:
    case = masked_lm_case(300, num_ids, temperature=1.3)
    assert torch.equal(case.call("torch").drawn, case.call("reference").drawn)


def test_drawn_id_depends_on_its_key_and_its_logits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    case = masked_lm_case(100, 700)
    whole = case.call("torch").drawn
    parts = [case.rows(slice(*span)).call("torch").drawn for span in ((0, 37), (37, 38), (38, 100))]
    assert torch.equal(torch.cat(parts), whole)
    monkeypatch.setattr(eager, "CHUNK_BYTES", 7 * 768 * 4)
    assert torch.equal(case.call("torch").drawn, whole)
    for other in ({"token": case.draw.token + 64}, {"sample": case.draw.sample + 1}, {"seed": 8}, {"stream": 10}):
        assert (case.with_draw(**other).call("torch").drawn != whole).sum() > 50, other


def test_both_numbers_of_a_row_matter() -> None:
    """A draw is a function of two uniform numbers: the block moves with the first, the place in it with the second."""
    logits = torch.zeros(1, NUM_IDS)
    cases = {(0.1, 0.51): 65, (0.1, 0.9): 115, (0.5, 0.51): 193, (0.9, 0.51): 278}
    for numbers, expected in cases.items():
        how = FixedNumbers(*numbers, some_banned())
        assert draw_ids(logits, how).tolist() == [expected]
        bare = torch.zeros(1, 1), torch.zeros(NUM_IDS, 1), logits[0], torch.zeros(1, dtype=torch.int64)
        assert masked_lm_loss(*bare, how, implementation="torch").drawn.tolist() == [expected]


class FixedNumbers(Draw):
    """A draw whose uniform numbers are given."""

    def __init__(self, first: float, second: float, banned: Tensor, num_rows: int = 1) -> None:
        keys = torch.zeros(num_rows, dtype=torch.int64)
        super().__init__(0, Stream.REPLACEMENT, keys, keys, banned)
        object.__setattr__(self, "numbers", torch.tensor([[first, second]], dtype=torch.float64).repeat(num_rows, 1))

    def uniforms(self) -> Tensor:
        return self.numbers


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("number", [2.0**-53, 0.5, 1.0 - 2.0**-53], ids=["smallest", "half", "largest"])
def test_drawn_ids_stay_in_range_at_the_ends_of_the_uniform(number: float, implementation: str) -> None:
    banned = some_banned(0, 1, 2, *range(294, NUM_IDS))
    num_rows = 600
    table = torch.randn(NUM_IDS, 8, generator=torch.Generator().manual_seed(0)) * 4
    hidden = torch.randn(num_rows, 8, generator=torch.Generator().manual_seed(1))  # sums that end around 1
    how = FixedNumbers(number, number, banned, num_rows)
    labels = torch.zeros(num_rows, dtype=torch.int64)
    drawn = masked_lm_loss(hidden, table, torch.zeros(NUM_IDS), labels, how, implementation=implementation).drawn
    assert not banned[drawn].any()


def test_a_choice_without_weight_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the cumulative sum is not monotone, as a parallel one may be by rounding."""
    log_weights = torch.tensor([[-torch.inf, 0.0, -torch.inf, -5000.0, -torch.inf]])
    for bumps in ([0.0, 0.0, 0.0, 0.0, 0.0], [1e-15, 0.0, 1e-15, 0.0, 1e-15]):
        cumsum = torch.Tensor.cumsum
        with monkeypatch.context() as patch:
            bump = torch.tensor(bumps, dtype=torch.float64)
            patch.setattr(torch.Tensor, "cumsum", lambda x, dim, cumsum=cumsum, bump=bump: cumsum(x, dim) + bump)
            for number in (2.0**-53, 0.5, 1.0 - 2.0**-53):
                assert draw.choose(log_weights, torch.tensor([number], dtype=torch.float64)).tolist() == [1]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_logits_of_a_diverged_generator_still_give_allowed_ids(poison: float, implementation: str) -> None:
    banned = some_banned(*range(128), 128, 299)
    table, hidden = torch.zeros(NUM_IDS, 2), torch.zeros(64, 2)
    table[:, 0], table[200, 1] = 1.0, 1.0
    hidden[:32, 0] = poison  # all logits of these rows
    hidden[32:, 1] = poison  # inf x 0 is NaN, so all logits of these but one are NaN
    flat = torch.arange(64)
    how = Draw(9, Stream.REPLACEMENT, flat, flat, banned)
    result = masked_lm_loss(hidden, table, torch.zeros(NUM_IDS), flat, how, implementation=implementation)
    assert not banned[result.drawn].any()
    assert len(set(result.drawn[:32].tolist())) > 10
    assert not result.loss_sum.isfinite()
