"""Which implementation a call gets, what is said about it, and what happens where "triton" cannot run.

GPUs are pretended: the choice looks at a device, a dtype and a head width, never at a tensor.
"""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from disentangled.kernels.disentangled_attention import disentangled_attention, dispatch
from disentangled.kernels.disentangled_attention.dispatch import choose_implementation
from tests.kernels.attention_case import attention_case, cumulative_lengths

ROOT = Path(__file__).resolve().parents[2]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def nothing_said_yet() -> Iterator[None]:
    dispatch.say_once.cache_clear()
    yield
    dispatch.say_once.cache_clear()


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A machine with a GPU of some capability, with or without Triton, with or without its interpreter."""

    def machine(capability: tuple[int, int] = (9, 0), *, triton: bool = True, interpreter: bool = False) -> None:
        gpu = SimpleNamespace(major=capability[0], minor=capability[1], name="NVIDIA Pretender")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: gpu)
        monkeypatch.setattr(dispatch, "HAS_TRITON", triton)
        monkeypatch.setattr(dispatch, "IS_INTERPRETED", interpreter)

    return machine


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_a_gpu_that_can_gets_the_kernels(
    pretend: Callable[..., None], capability: tuple[int, int], dtype: torch.dtype
) -> None:
    pretend(capability)
    for head_width in (1, 64, 128):
        expected = "torch" if dtype == torch.float32 and head_width > 64 else "triton"
        assert choose_implementation(None, GPU, dtype, head_width) == expected
        assert choose_implementation("triton", GPU, dtype, head_width) == "triton"


FALLBACKS = {
    "NVIDIA Pretender has compute capability 7.5, and 8.0 is needed": ({"capability": (7, 5)}, torch.float32, 64),
    "the package triton is not installed": ({"triton": False}, torch.float32, 64),
    "Triton's interpreter is on": ({"interpreter": True}, torch.float32, 64),
    "the tensors are torch.float64": ({}, torch.float64, 64),
    "heads are 129 wide, and it takes at most 128": ({}, torch.float32, 129),
    "float32 heads of 128 do not fit the registers": ({}, torch.float32, 128),
}


@pytest.mark.parametrize("reason", FALLBACKS)
def test_a_gpu_that_cannot_gets_torch_and_one_warning(
    reason: str, pretend: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    machine, dtype, head_width = FALLBACKS[reason]
    pretend(**machine)
    for _ in range(3):
        assert choose_implementation(None, GPU, dtype, head_width) == "torch"
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("disentangled", logging.WARNING)
    assert record.getMessage().startswith(f"disentangled_attention runs as 'torch' on cuda: {reason}")


def test_the_choice_is_said_once_for_each_device(
    pretend: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    pretend()
    caplog.set_level(logging.INFO, "disentangled")
    for device in (GPU, CPU, GPU, CPU):
        choose_implementation(None, device, torch.bfloat16, 64)
    choose_implementation("torch", GPU, torch.bfloat16, 64)  # as asked: nothing to say
    said = [(record.levelno, record.getMessage()) for record in caplog.records]
    assert said == [
        (logging.INFO, "disentangled_attention runs as 'triton' on cuda"),
        (
            logging.INFO,
            "disentangled_attention runs as 'torch' on cpu: it needs an NVIDIA GPU, and the tensors are on cpu",
        ),
    ]


@pytest.mark.parametrize("asked", ["reference", "torch"])
def test_an_implementation_asked_for_is_taken(asked: str, pretend: Callable[..., None]) -> None:
    pretend()
    assert choose_implementation(asked, GPU, torch.float64, 1000) == asked


REFUSALS = {
    "it needs an NVIDIA GPU, and the tensors are on cpu; use 'torch'": ({}, CPU, torch.float32, 64, RuntimeError),
    "it needs an NVIDIA GPU, and the tensors are on mps": ({}, torch.device("mps"), torch.float32, 64, RuntimeError),
    "has compute capability 7.0, and 8.0": ({"capability": (7, 0)}, GPU, torch.float32, 64, RuntimeError),
    "the package triton is not installed": ({"triton": False}, GPU, torch.float32, 64, RuntimeError),
    "interpreter multiplies bfloat16 wrongly": ({"interpreter": True}, CPU, torch.bfloat16, 64, RuntimeError),
    "the tensors are torch.float64, and it takes": ({}, GPU, torch.float64, 64, ValueError),
    "heads are 160 wide": ({}, GPU, torch.float16, 160, ValueError),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_triton_asked_for_where_it_cannot_run_is_an_error(message: str, pretend: Callable[..., None]) -> None:
    machine, device, dtype, head_width, kind = REFUSALS[message]
    pretend(**machine)
    with pytest.raises(kind, match="implementation 'triton' cannot") as error:
        choose_implementation("triton", device, dtype, head_width)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_amd_gpus_get_torch(pretend: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    pretend()
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert choose_implementation(None, GPU, torch.bfloat16, 64) == "torch"


def test_the_op_asks_with_its_own_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    case, asked = attention_case(5, head_width=24, dtype=torch.float16), []

    def choose(*arguments: object) -> str:
        asked.append(arguments)
        return "torch"

    monkeypatch.setattr("disentangled.kernels.disentangled_attention.op.choose_implementation", choose)
    disentangled_attention(*case.tensors, **case.keywords)
    assert asked == [(None, CPU, torch.float16, 24)]


def test_cpu_tensors_get_torch_by_default_even_under_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    case = attention_case(5)
    monkeypatch.delattr(torch.ops.disentangled, "attention_forward", raising=False)
    assert torch.equal(case.run(None)["output"], case.run("torch")["output"])


PROGRAM = """
import sys
sys.modules["triton"] = None  # importing it fails
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
import torch
from disentangled.kernels.disentangled_attention import disentangled_attention
query = torch.ones(1, 2, 1, 16)
settings = dict(position_buckets=8, max_relative_positions=16, scale=0.25)
assert "torch._dynamo" not in sys.modules  # it takes seconds to import
print(disentangled_attention(query, query, query, None, None, **settings).sum().item())
try:
    disentangled_attention(query, query, query, None, None, implementation="triton", **settings)
except RuntimeError as error:
    print(error)
"""


def test_without_triton_the_op_imports_and_runs() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "32.0",
        "implementation 'triton' cannot run here: the package triton is not installed; use 'torch'",
    ]


@pytest.mark.parametrize("starts", [(0, 5, 3), (1, 3, 6), (0, 3, 7)])
def test_triton_on_the_host_checks_the_values_of_cu_seqlens(starts: tuple[int, ...]) -> None:
    pytest.importorskip("triton")
    case = attention_case(6, batch=None, cu_seqlens_q=cumulative_lengths(2, 3), cu_seqlens_k=torch.tensor(starts).int())
    if torch.cuda.is_available():
        pytest.skip("runs in Triton's interpreter")
    with pytest.raises(ValueError, match="cu_seqlens_k must rise from 0 to at most 6"):
        case.run("triton")
