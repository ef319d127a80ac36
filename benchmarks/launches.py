"""The launches of our launchers: caught before they reach a device, and compiled ahead of time for the named GPU.

What: within `caught`, `kernel[grid](...)` hands a Launch to whoever asked, and nothing else happens; tile sizes are
those of the named GPU. `compile_launch` specialises a program as Triton's own launcher would.
Used by: resources.py, loss_resources.py, dropout.py, tests/ptx. Tested by: tests/benchmarks/test_resources.py.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.read_ahead import written_and_read_ahead

OPTIONS = ("num_warps", "num_stages", "maxnreg")
DECLARED_ARRAY = re.compile(r"\.shared\s+\.align\s+\d+\s+\.b8\s+\w+\[(\d+)\];")
TRITON_TYPES = {
    torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32",
    torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8", torch.bool: "*i1",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel, and what it would have been launched with."""

    kernel: Any
    arguments: dict[str, Any]
    grid: tuple[int, ...] = (1,)

    @property
    def name(self) -> str:
        return str(self.kernel.fn.__name__)


class _Catcher:
    """Stands for a kernel in its launcher's module."""

    def __init__(self, kernel: Any, catch: Callable[[Launch], None]) -> None:
        self._kernel, self._catch = kernel, catch

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def call(*args: Any, **kwargs: Any) -> None:
            named = dict(zip(self._kernel.arg_names, args, strict=False))
            self._catch(Launch(self._kernel, named | kwargs, grid))

        return call


@contextmanager
def caught(catch: Callable[[Launch], None], capability: int, *modules: ModuleType) -> Iterator[None]:
    """Within it, what these modules would launch on such a GPU goes to `catch`, in order."""
    replaced = [
        (module, name, value)
        for module in modules
        for name, value in vars(module).items()
        if name == "capability_of" or (name.endswith("_kernel") and hasattr(value, "arg_names"))
    ]
    try:
        for module, name, value in replaced:
            stands_in = (lambda _device: capability) if name == "capability_of" else _Catcher(value, catch)
            setattr(module, name, stands_in)
        yield
    finally:
        for module, name, value in replaced:
            setattr(module, name, value)


@dataclass(frozen=True)
class Specialized:
    """How Triton's launcher sees arguments: types of those passed on, and values of those compiled in."""

    signature: dict[str, str]
    constants: dict[str, Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]


def specialize(launch: Launch) -> Specialized:
    """By Triton's rules: ones and None are compiled in, and multiples of 16 are known as such."""
    found = Specialized({}, {}, {})
    for index, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        divisible = isinstance(value, int) and value % 16 == 0 and not parameter.do_not_specialize
        if isinstance(value, torch.Tensor):
            found.signature[name] = TRITON_TYPES[value.dtype]
            divisible = value.data_ptr() % 16 == 0
        elif (
            parameter.is_constexpr
            or value is None
            or (type(value) is int and value == 1 and not parameter.do_not_specialize)
        ):
            found.signature[name], found.constants[name] = "constexpr", value
            continue
        elif isinstance(value, float):
            found.signature[name] = "fp32"
        else:
            found.signature[name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if divisible:
            found.attributes[(index,)] = [["tt.divisibility", 16]]
    return found


def compile_launch(launch: Launch, capability: int) -> Any:
    """The program that would have been launched, as Triton's CompiledKernel.

    Raises:
        RuntimeError: the program reads ahead what it writes itself, so its results would be wrong; or Triton's shared
            memory would begin, behind the program's own, where tensor cores cannot read it.
    """
    specialized = specialize(launch)
    source = ASTSource(
        fn=launch.kernel,
        signature=specialized.signature,
        constexprs=specialized.constants,
        attrs=specialized.attributes,
    )
    options = {option: launch.arguments[option] for option in OPTIONS if option in launch.arguments}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    if own := written_and_read_ahead(compiled.asm["ttgir"]):
        raise RuntimeError(
            f"{launch.name} at sm_{capability} reads {', '.join(sorted(own))} ahead, which it writes itself: launch"
            " it with num_stages=1, or read with addresses that Triton cannot copy from ahead"
        )
    if own := declared_shared_bytes(compiled) % 1024:
        raise RuntimeError(f"{launch.name} declares {own} bytes of shared memory more than a multiple of 1024")
    return compiled


def declared_shared_bytes(compiled: Any) -> int:
    """Shared memory that a program declares by inline instructions; metadata.shared is Triton's own, behind it."""
    return sum(map(int, DECLARED_ARRAY.findall(compiled.asm["ptx"])))
