"""The driver is asked for shared memory where Triton does not ask, and only there; the driver is a double."""

import json
from pathlib import Path
from unittest.mock import Mock

import pytest

pytest.importorskip("triton")
import triton

from disentangled.kernels.disentangled_attention import launch, shared_memory_limit
from disentangled.kernels.disentangled_attention.shared_memory_limit import UNASKED_BYTES, ask_for_shared_memory

FUNCTION = 1 << 40


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """A driver that agrees."""
    double = Mock(cuFuncSetAttribute=Mock(return_value=0))
    monkeypatch.setattr(shared_memory_limit, "_driver", lambda: double)
    return double


def load(folder: Path, shared: int, name: str = "forward_kernel") -> None:
    """What Triton does when it has loaded a program with so much shared memory besides what that declares."""
    description = folder / "program.json"
    description.write_text(json.dumps({"shared": shared}))
    ask_for_shared_memory(None, FUNCTION, name, {f"{name}.json": str(description)}, "")


def test_it_is_asked_where_triton_does_not(driver: Mock, tmp_path: Path) -> None:
    load(tmp_path, UNASKED_BYTES)
    (function, attribute, size), _ = driver.cuFuncSetAttribute.call_args
    assert (function.value, attribute.value, size.value) == (FUNCTION, 8, UNASKED_BYTES)


@pytest.mark.parametrize(
    "shared, name",
    [(UNASKED_BYTES + 8, "key_value_kernel"), (40960, "kernel_of_another")],
    ids=["Triton asks", "not ours"],
)
def test_it_is_not_asked_elsewhere(driver: Mock, tmp_path: Path, shared: int, name: str) -> None:
    load(tmp_path, shared, name)
    driver.cuFuncSetAttribute.assert_not_called()


def test_a_refusal_names_the_kernel_and_a_way_out(driver: Mock, tmp_path: Path) -> None:
    driver.cuFuncSetAttribute.return_value = 1
    with pytest.raises(RuntimeError, match=r"forward_kernel needs 40960 bytes .*error 1.*implementation='torch'"):
        load(tmp_path, 40960)


def test_triton_calls_it_for_the_kernels_that_have_memory_of_their_own() -> None:
    assert ask_for_shared_memory in triton.knobs.runtime.kernel_load_end_hook.calls
    assert all(hasattr(launch, name) for name in shared_memory_limit.KERNELS)
