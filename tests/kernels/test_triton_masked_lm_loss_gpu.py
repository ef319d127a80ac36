"""Implementation "triton" on a GPU, in its own tiles: bfloat16, large vocabularies, memory, no wait for the host."""

from collections.abc import Callable, Iterator

import pytest
import torch

from disentangled.kernels.masked_lm_loss import masked_lm_loss
from tests.kernels.masked_lm_case import MaskedLmCase, masked_lm_case

pytestmark = [
    pytest.mark.requires_gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
MOST_EXTRA_BYTES = 64_000_000


@pytest.fixture
def sync_debug_mode() -> Iterator[Callable[[str], None]]:
    yield torch.cuda.set_sync_debug_mode
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_rows", "num_ids", "width"),
    [(17, 101, 64), (129, 1000, 200), (300, 32_000, 256), (2400, 5000, 768), (40, 128_100, 768), (40, 251_000, 1024)],
)
def test_every_size_is_no_worse_than_eager(num_rows: int, num_ids: int, width: int, dtype: torch.dtype) -> None:
    masked_lm_case(num_rows, num_ids, width, dtype=dtype).on("cuda").assert_no_worse_than_eager("triton")


def test_dispatch_takes_the_kernels() -> None:
    case = masked_lm_case(70, 1000, dtype=torch.bfloat16).on("cuda")
    expected = case.run("triton")
    for name, result in case.run(None).items():
        assert torch.equal(result, expected[name]), name


def test_draws_are_those_of_the_cpu() -> None:
    """Logits are rounded otherwise, so a draw in a thousand may part."""
    case = masked_lm_case(2000, 5000, 64)
    parted = case.on("cuda").call("triton").drawn.cpu() != case.call("torch").drawn
    assert int(parted.sum()) <= 2


def test_results_are_equal_bit_for_bit_when_repeated() -> None:
    case = masked_lm_case(700, 30_000, 768, dtype=torch.bfloat16).on("cuda")
    first = case.run("triton")
    for _ in range(5):
        for name, result in case.run("triton").items():
            assert torch.equal(result, first[name]), name


def forward_and_backward(case: MaskedLmCase) -> None:
    leaves = [x.requires_grad_() for x in case.tensors]
    masked_lm_loss(*leaves, case.labels, case.draw, implementation="triton").loss_sum.backward()


def test_the_host_never_waits_and_no_kernel_is_compiled_again(sync_debug_mode: Callable[[str], None]) -> None:
    from disentangled.kernels.masked_lm_loss import launch

    whole = masked_lm_case(300, 5000, 64, dtype=torch.bfloat16).on("cuda")
    parts = [whole.rows(slice(0, rows)) for rows in (300, 1, 16, 17, 256, 299, 0)]
    forward_and_backward(parts[0])
    torch.cuda.synchronize()
    kernels = (launch.statistics_kernel, launch.finish_kernel, launch.grad_logits_kernel)

    def num_compiled() -> list[int]:
        return [sum(len(caches[0]) for caches in kernel.device_caches.values()) for kernel in kernels]

    before = num_compiled()
    sync_debug_mode("error")
    for part in parts:
        forward_and_backward(part)
    assert num_compiled() == before


@pytest.mark.parametrize("table_dtype", [torch.bfloat16, torch.float32])
def test_memory_at_the_size_of_a_base_models_step_is_bounded(table_dtype: torch.dtype) -> None:
    case = masked_lm_case(2400, 128_100, 768, dtype=table_dtype).on("cuda")
    case = case.with_tensors(hidden=case.tensors[0].bfloat16())
    forward_and_backward(case.rows(slice(0, 100)))  # what a first product allocates for good
    leaves = [x.detach().requires_grad_() for x in case.tensors]
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    result = masked_lm_loss(*leaves, case.labels, case.draw, implementation="triton")
    grads = torch.autograd.grad(result.loss_sum, leaves)
    outputs = sum(x.nbytes for x in (*result, *grads))
    assert torch.cuda.max_memory_allocated() - before - outputs <= MOST_EXTRA_BYTES
