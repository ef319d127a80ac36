import pytest
import torch

from disentangled.trainer.norms import NORM_RUN, norm_of, norm_of_all


def test_norm_of_a_large_table_is_exact_to_float32() -> None:
    # torch.linalg.vector_norm in fp32 is off by 4e-4 here on a CPU
    values = torch.full((8192, 64), 1e-3)
    assert float(norm_of(values)) == pytest.approx(1e-3 * (8192 * 64) ** 0.5, rel=torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("num_values", [1, 1000, NORM_RUN, 3 * NORM_RUN + 7, 200_003])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norm_of_any_number_of_values_is_exact_to_float32(num_values: int, dtype: torch.dtype) -> None:
    values = torch.randn(num_values, generator=torch.Generator().manual_seed(num_values)).to(dtype)
    expected = float(values.double().norm())
    # a run's sum is one of NORM_RUN squares in float32, whatever dtype they come in
    assert float(norm_of(values)) == pytest.approx(expected, rel=torch.finfo(torch.float32).eps)


def test_norm_of_all_is_that_of_one_long_tensor() -> None:
    random = torch.Generator().manual_seed(5)
    tensors = [torch.randn(size, generator=random) for size in ((), (7,), (40, 60), (NORM_RUN,))]
    expected = float(torch.cat([x.flatten() for x in tensors]).double().norm())
    assert float(norm_of_all(tensors)) == pytest.approx(expected, rel=torch.finfo(torch.float32).eps)
    tensors[1][3] = torch.nan
    assert norm_of_all(tensors).isnan()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_norm_of_all_on_a_gpu_is_that_of_a_cpu() -> None:
    random = torch.Generator().manual_seed(6)
    tensors = [torch.randn(size, generator=random) * 1e-3 for size in ((8192, 768), (768,), (3072, 768))]
    on_gpu = norm_of_all([x.cuda() for x in tensors])
    assert on_gpu.is_cuda and float(on_gpu) == pytest.approx(float(norm_of_all(tensors)), rel=1e-6)
