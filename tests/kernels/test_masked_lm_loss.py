"""Loss, top-1 and gradients of "torch" by the error rule, of the reference against torch's own; memory by counting."""

import pytest
import torch
import torch.nn.functional as F

from disentangled.kernels.masked_lm_loss import eager, masked_lm_loss
from disentangled.trainer.allocated_bytes import AllocatedBytes
from tests.kernels.masked_lm_case import (
    NAMES,
    UPSTREAM,
    MaskedLmCase,
    assert_all_no_worse_than_eager,
    masked_lm_case,
)

slow = pytest.mark.slow
CPU = torch.device("cpu")
MOST_EXTRA_BYTES = 64_000_000


def test_reference_is_torchs_cross_entropy() -> None:
    case = masked_lm_case(40, 300, dtype=torch.float64)
    results = case.run("reference")
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    logits = F.linear(*leaves)
    expected = F.cross_entropy(logits, case.labels, reduction="none", ignore_index=-100)
    torch.testing.assert_close(results["losses"], expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(results["lse"], logits.logsumexp(-1), rtol=1e-12, atol=1e-12)
    assert torch.equal(results["is_correct"], logits.argmax(-1) == case.labels)
    assert 8 <= int(results["is_correct"].sum()) <= 30 < int((case.labels >= 0).sum())
    for name, grad in zip(NAMES, torch.autograd.grad(expected.sum() * UPSTREAM, leaves), strict=True):
        torch.testing.assert_close(results[f"grad_{name}"], grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("num_rows", "num_ids", "width"),
    [
        (17, 128, 24),
        (17, 1000, 64),
        (2400, 101, 16),
        (17, 32_000, 32),
        (17, 128_100, 8),
        (9, 251_000, 8),
        pytest.param(2400, 32_000, 64, marks=slow),
        pytest.param(130, 128_100, 64, marks=slow),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_is_no_worse_than_eager(num_rows: int, num_ids: int, width: int, dtype: torch.dtype) -> None:
    masked_lm_case(num_rows, num_ids, width, dtype=dtype).assert_no_worse_than_eager("torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_is_no_worse_than_eager_in_single_rows(dtype: torch.dtype) -> None:
    assert_all_no_worse_than_eager([masked_lm_case(1, 101, dtype=dtype, seed=seed) for seed in range(32)], "torch")


def test_torch_is_exact_in_float64() -> None:
    case = masked_lm_case(50, 700, dtype=torch.float64)
    results, exact = case.run("torch"), case.run("reference")
    for name in exact:
        torch.testing.assert_close(results[name], exact[name], rtol=1e-12, atol=1e-12)


def test_chunks_of_any_size_give_the_same_draws_and_nearly_the_same_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    case = masked_lm_case(23, 700)
    whole = case.run("torch")
    monkeypatch.setattr(eager, "CHUNK_BYTES", 5 * 768 * 4)
    monkeypatch.setattr(eager, "COLUMNS_AT_ONCE", 256)
    case.assert_no_worse_than_eager("torch")
    assert torch.equal(case.run("torch")["drawn"], whole["drawn"])


def test_table_widened_in_blocks_gives_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "TABLE_BLOCK", 130)
    masked_lm_case(23, 700, dtype=torch.bfloat16).assert_no_worse_than_eager("torch")


def test_half_hidden_rows_meet_a_float32_table_as_under_autocast() -> None:
    case = masked_lm_case(20, 300)
    hidden, table, bias = (x.clone().requires_grad_() for x in case.tensors)
    with torch.autocast("cpu", torch.bfloat16):
        cast = masked_lm_loss(hidden, table, bias, case.labels, case.draw, implementation="torch")
    cast.loss_sum.backward()
    assert table.grad is not None and table.grad.dtype == hidden.grad.dtype == torch.float32
    rounded = case.with_tensors(hidden=case.tensors[0].bfloat16().float()).run("torch")
    assert torch.equal(cast.losses, rounded["losses"])  # the table is not rounded, and nothing is after hidden


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_no_rows_give_zeros_and_a_gradient_for_everything(implementation: str) -> None:
    results = masked_lm_case(0, 300).run(implementation)
    assert results["loss_sum"] == 0.0 and results["drawn"].shape == (0,) and results["drawn"].dtype == torch.int64
    for name in NAMES:
        assert not results[f"grad_{name}"].any(), name
    assert results["grad_table"].shape == (300, 16)


@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_rows_without_a_label_change_nothing(implementation: str) -> None:
    case = masked_lm_case(20, 300)
    results = case.run(implementation)
    ignored = case.labels < 0
    assert ignored.sum() == 4
    assert not results["losses"][ignored].any() and not results["is_correct"][ignored].any()
    assert not results["grad_hidden"][ignored].any()
    hidden = case.tensors[0].masked_fill(ignored.unsqueeze(1), torch.nan)
    poisoned = case.with_tensors(hidden=hidden).run("torch")
    # 0 x NaN is NaN in a product, so a row of NaN reaches the table's gradient, but its loss reaches nothing.
    assert torch.equal(poisoned["losses"], case.run("torch")["losses"])
    assert torch.equal(poisoned["grad_bias"], case.run("torch")["grad_bias"])


def test_gradients_are_given_once() -> None:
    hidden, table, bias = (x.clone().requires_grad_() for x in masked_lm_case(5, 300).tensors)
    case = masked_lm_case(5, 300)
    result = masked_lm_loss(hidden, table, bias, case.labels, case.draw, implementation="torch")
    result.loss_sum.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="has given its gradients away: call backward once"):
        result.loss_sum.backward()


def test_nothing_is_kept_where_no_gradient_is_wanted() -> None:
    case = masked_lm_case(5, 300)
    leaves = [x.clone().requires_grad_() for x in case.tensors]
    with torch.no_grad():
        result = masked_lm_loss(*leaves, case.labels, case.draw)
    assert not result.loss_sum.requires_grad
    assert torch.equal(result.losses, case.run("torch")["losses"])


def extra_bytes(case: MaskedLmCase) -> int:
    """The most bytes that forward and backward of "torch" hold besides inputs, results and gradients."""
    with AllocatedBytes(CPU) as allocated:
        leaves = [x.clone().requires_grad_() for x in case.tensors]
        allocated.mark()
        result = masked_lm_loss(*leaves, case.labels, case.draw, implementation="torch")
        grads = torch.autograd.grad(result.loss_sum * UPSTREAM, leaves)
        results = (*result, *grads)
        return allocated.peak() - sum(x.nbytes for x in results)


def test_memory_beside_inputs_and_outputs_is_bounded() -> None:
    assert extra_bytes(masked_lm_case(60, 50_000, 400)) <= MOST_EXTRA_BYTES  # a second table would be 80 MB
    most = extra_bytes(masked_lm_case(600, 50_000, 8))
    assert 600 * 50_000 * 4 > MOST_EXTRA_BYTES >= most > eager.CHUNK_BYTES // 2  # what is counted is there


@slow
def test_memory_at_the_size_of_a_base_models_step_is_bounded() -> None:
    assert extra_bytes(masked_lm_case(2400, 128_100, 768)) <= MOST_EXTRA_BYTES
