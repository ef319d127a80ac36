"""Implementation "triton", by the error rule: results, every gradient, draws, in sizes that fit no tile.

Without a GPU the programs run in Triton's interpreter (tests/conftest.py), in tiles of 16 rows so that a few rows make
many tiles; bfloat16 is left to the GPU (test_triton_masked_lm_loss_gpu.py), as the interpreter multiplies it wrongly.
torch.empty is NaN here (conftest.py), and no program may read or write outside of its tensors (memory_guard.py).
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.masked_lm_loss import Draw, masked_lm_loss
from tests.kernels.masked_lm_case import (
    NAMES,
    UPSTREAM,
    MaskedLmCase,
    assert_all_no_worse_than_eager,
    masked_lm_case,
)

pytest.importorskip("triton")
from disentangled.kernels.masked_lm_loss import launch, tile_sizes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALF = torch.float16
slow = pytest.mark.slow


def set_tiles(monkeypatch: pytest.MonkeyPatch, **changes: int) -> None:
    choose = tile_sizes.tiles_of
    monkeypatch.setattr(launch, "tiles_of", lambda *arguments: replace(choose(*arguments), **changes))


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    set_tiles(monkeypatch, rows=16, width=16, finished_rows=16)
    monkeypatch.setattr(launch, "PART_IDS", 256)


def assert_equal_results(results: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, result in results.items():
        assert torch.equal(result, expected[name]), name


@pytest.mark.parametrize(
    ("num_rows", "num_ids", "width", "dtype"),
    [
        (17, 101, 24, HALF),
        (16, 128, 32, torch.float32),
        (37, 300, 20, torch.float32),
        (37, 300, 20, HALF),
        (17, 1000, 16, torch.float32),
        pytest.param(130, 700, 64, torch.float32, marks=slow),
        pytest.param(130, 700, 64, HALF, marks=slow),
        pytest.param(17, 5000, 40, torch.float32, marks=slow),
    ],
)
def test_triton_is_no_worse_than_eager(num_rows: int, num_ids: int, width: int, dtype: torch.dtype) -> None:
    masked_lm_case(num_rows, num_ids, width, dtype=dtype).on(DEVICE).assert_no_worse_than_eager("triton")


def test_triton_is_no_worse_than_eager_in_single_rows() -> None:
    cases = [masked_lm_case(1, 101, seed=seed).on(DEVICE) for seed in range(12)]
    assert_all_no_worse_than_eager(cases, "triton")


def test_a_table_of_float32_is_rounded_to_half_hidden_rows() -> None:
    case = masked_lm_case(17, 300).on(DEVICE)
    hidden, table, bias = case.tensors
    mixed = case.with_tensors(hidden=hidden.half()).run("triton")
    halves = case.with_tensors(hidden=hidden.half(), table=table.half(), bias=bias.half())
    exact, eager = halves.run("reference", torch.float64), halves.run("reference")
    assert mixed["grad_table"].dtype == mixed["grad_bias"].dtype == torch.float32
    assert mixed["grad_hidden"].dtype == HALF
    for name in ("losses", "grad_table", "grad_hidden", "grad_bias"):
        error = (mixed[name].double() - exact[name]).square().mean().sqrt()
        assert error <= 2 * (eager[name].double() - exact[name]).square().mean().sqrt(), name


def test_no_rows_give_zeros_and_a_gradient_for_everything() -> None:
    results = masked_lm_case(0, 300).on(DEVICE).run("triton")
    assert results["loss_sum"] == 0.0 and results["drawn"].shape == (0,)
    for name in NAMES:
        assert not results[f"grad_{name}"].any(), name
    assert results["grad_table"].shape == (300, 16)


def test_rows_without_a_label_change_nothing() -> None:
    case = masked_lm_case(20, 300).on(DEVICE)
    results, ignored = case.run("triton"), case.labels < 0
    assert not results["losses"][ignored].any() and not results["is_correct"][ignored].any()
    assert not results["grad_hidden"][ignored].any()
    poisoned = case.with_tensors(hidden=case.tensors[0].masked_fill(ignored.unsqueeze(1), torch.nan)).run("triton")
    assert torch.equal(poisoned["losses"], results["losses"])
    assert torch.equal(poisoned["grad_bias"], results["grad_bias"])


def test_equal_logits_count_as_the_lowest_id() -> None:
    """Of ids in one tile, in two tiles of a part and in two parts; the reference's rule is torch.argmax's."""
    places = torch.tensor([[5, 9], [5, 140], [5, 290], [130, 299]])
    case = masked_lm_case(4, 300).on(DEVICE)
    hidden, table = torch.eye(4, 16), torch.zeros(300, 16)
    for row, pair in enumerate(places):
        table[pair, row] = 1.0
    for column in (0, 1):
        tied = replace(case, tensors=(hidden, table, torch.zeros(300)), labels=places[:, column]).on(DEVICE)
        expected = tied.call("reference").is_correct
        assert expected.tolist() == [column == 0] * 4
        assert torch.equal(tied.call("triton").is_correct, expected)


@pytest.mark.parametrize("temperature", [0.7, pytest.param(1.0, marks=slow), pytest.param(2.0, marks=slow)])
def test_draws_are_those_of_the_reference(temperature: float) -> None:
    case = masked_lm_case(150, 301, temperature=temperature).on(DEVICE)
    assert torch.equal(case.call("triton").drawn, case.call("reference").drawn)


def test_draws_do_not_depend_on_tiles_or_on_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    case = masked_lm_case(48, 600).on(DEVICE)
    whole = case.call("triton").drawn
    parts = [case.rows(slice(*span)).call("triton").drawn for span in ((0, 17), (17, 18), (18, 48))]
    assert torch.equal(torch.cat(parts), whole)
    set_tiles(monkeypatch, rows=32, ids=256, width=32, finished_rows=8)
    monkeypatch.setattr(launch, "PART_IDS", 512)
    assert torch.equal(case.call("triton").drawn, whole)
    assert (case.with_draw(token=case.draw.token + 64).call("triton").drawn != whole).sum() > 24


def test_wide_tiles_of_ids_and_rows_finished_alone_are_right_too(monkeypatch: pytest.MonkeyPatch) -> None:
    set_tiles(monkeypatch, rows=16, ids=256, width=16, finished_rows=1)
    masked_lm_case(9, 300).on(DEVICE).assert_no_worse_than_eager("triton")


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_logits_of_a_diverged_generator_still_give_allowed_ids(poison: float) -> None:
    banned = torch.zeros(300, dtype=torch.bool)
    banned[[*range(128), 128, 299]] = True
    table, hidden = torch.zeros(300, 2), torch.zeros(32, 2)
    table[:, 0], table[200, 1] = 1.0, 1.0
    hidden[:16, 0] = poison  # all logits of these rows
    hidden[16:, 1] = poison  # inf x 0 is NaN, so all logits of these but one are NaN
    flat = torch.arange(32)
    case = MaskedLmCase((hidden, table, torch.zeros(300)), flat, Draw(9, Stream.REPLACEMENT, flat, flat, banned))
    result = case.on(DEVICE).call("triton")
    assert not banned[result.drawn.cpu()].any()
    assert len(set(result.drawn[:16].tolist())) > 8
    assert not result.loss_sum.isfinite()


def test_banned_ids_are_never_drawn_however_likely() -> None:
    case = masked_lm_case(60, 300).on(DEVICE)
    banned = case.draw.banned.clone()
    banned[::2] = True
    bias = case.tensors[2].masked_fill(banned, 300.0)
    drawn = case.with_tensors(bias=bias).with_draw(banned=banned).call("triton").drawn
    assert not banned[drawn].any()
    assert len(drawn.unique()) > 20


def test_chunks_of_any_size_give_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    case = masked_lm_case(17, 500).on(DEVICE)
    whole = case.run("triton")
    monkeypatch.setattr(launch, "CHUNK_BYTES", 1)
    parts = case.run("triton")
    for name in ("grad_table", "grad_bias", "losses"):
        assert torch.equal(parts[name], whole[name]), name
    case.assert_no_worse_than_eager("triton")  # hidden's gradient is summed in another order


def test_results_are_equal_bit_for_bit_when_repeated() -> None:
    case = masked_lm_case(20, 300).on(DEVICE)
    assert_equal_results(case.run("triton"), case.run("triton"))


def test_strided_tensors_give_what_contiguous_ones_give() -> None:
    case = masked_lm_case(10, 150).on(DEVICE)
    strided = {name: x.repeat_interleave(2, dim=-1)[..., ::2] for name, x in zip(NAMES, case.tensors, strict=True)}
    places = {name: getattr(case.draw, name).repeat_interleave(2)[::2] for name in ("sample", "token", "banned")}
    other = replace(case.with_tensors(**strided).with_draw(**places), labels=case.labels.repeat_interleave(2)[::2])
    assert not any(x.is_contiguous() for x in other.tensors)
    assert_equal_results(other.run("triton"), case.run("triton"))


def test_a_loss_scale_acts_before_gradients_are_rounded() -> None:
    """In float16 2^-30 of a gradient is zero: unscaled it is lost, and a scale of 2^30 brings all of it back."""
    case = masked_lm_case(17, 300, dtype=HALF).on(DEVICE)
    grads = {}
    for scale in (1.0, 2.0**30):
        leaves = [x.clone().requires_grad_() for x in case.tensors]
        loss = masked_lm_loss(*leaves, case.labels, case.draw, implementation="triton").loss_sum
        grads[scale] = torch.autograd.grad(loss * 2.0**-30 * scale, leaves)
    assert not any(x.any() for x in grads[1.0])
    expected = case.run("triton")
    for name, grad in zip(NAMES, grads[2.0**30], strict=True):
        # A power of two would be exact; UPSTREAM is 1.5 of one, so each product is rounded once.
        torch.testing.assert_close(grad * UPSTREAM, expected[f"grad_{name}"], rtol=2.0**-8, atol=2.0**-8)
