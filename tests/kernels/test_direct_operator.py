"""Operators called past the dispatcher: the same bits, and everybody who looks at operators still finds them."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from disentangled.kernels.direct_operator import DirectOperator
from disentangled.kernels.hidden_dropout import dropout
from tests.kernels.attention_case import attention_case
from tests.kernels.residual_norm_case import KEYS, ResidualNormCase, places

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Run = Callable[[], list[Tensor]]


def scale(x: Tensor, factor: float) -> Tensor:
    return x * factor


def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.factor = inputs


def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    return gradient * ctx.factor, None


class Calls:
    """An operator and its launcher, and how often each was called from outside."""

    def __init__(self) -> None:
        self.operator = self.launch = 0
        self.direct = DirectOperator(self._count_operator, self._count_launch, save, backward)
        self.without_gradient = DirectOperator(self._count_operator, self._count_launch)

    def _count_operator(self, *arguments: Any) -> Any:
        self.operator += 1
        return torch.ops.disentangled_test.scale(*arguments)

    def _count_launch(self, *arguments: Any) -> Tensor:
        self.launch += 1
        return scale(*arguments)

    @property
    def counts(self) -> tuple[int, int]:
        return self.operator, self.launch


@pytest.fixture
def calls() -> Iterator[Calls]:
    with torch.library._scoped_library("disentangled_test", "FRAGMENT"):
        operator = torch.library.custom_op("disentangled_test::scale", scale, mutates_args=())
        operator.register_fake(lambda x, factor: torch.empty_like(x))
        operator.register_autograd(backward, setup_context=save)
        yield Calls()


def test_plain_tensors_meet_the_launcher(calls: Calls) -> None:
    x = torch.arange(3.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(calls.direct(x, 3.0).sum(), x)
    assert gradient.tolist() == [3.0] * 3
    parameter = torch.nn.Parameter(torch.ones(2))
    assert calls.direct(parameter, 2.0).requires_grad
    assert not calls.direct(x.detach(), 2.0).requires_grad
    with torch.no_grad():
        assert not calls.direct(x, 2.0).requires_grad
        assert calls.without_gradient(x, 2.0).tolist() == [0.0, 2.0, 4.0]
    assert calls.counts == (0, 5)


def test_a_gradient_that_it_has_not_is_asked_of_the_operator(calls: Calls) -> None:
    x = torch.ones(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(calls.without_gradient(x, 3.0).sum(), x)
    assert gradient.tolist() == [3.0, 3.0]
    assert calls.counts == (1, 0)


class Seen(TorchDispatchMode):
    """Names of the operators that are called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_who_looks_at_operators_finds_them(calls: Calls) -> None:
    x = torch.ones(2)
    with Seen() as seen:
        calls.direct(x, 2.0)
    assert "disentangled_test.scale.default" in seen.names
    with FakeTensorMode() as mode:
        assert isinstance(calls.direct(mode.from_tensor(x), 2.0), FakeTensor)
    fake = FakeTensorMode().from_tensor(x)
    assert isinstance(calls.direct(fake, 2.0), FakeTensor)
    traced = torch.jit.trace(lambda x: calls.direct(x, 2.0), x, check_trace=False)
    assert "disentangled_test::scale" in str(traced.graph)
    assert calls.counts == (4, 0)


def test_functorch_meets_the_operator() -> None:
    direct = DirectOperator(torch.mul, scale, save, backward)
    gradient = torch.func.grad(lambda x: direct(x, 2.0).sum())(torch.ones(2))
    assert gradient.tolist() == [2.0, 2.0]  # autograd.Function of this kind refuses to be transformed


def test_a_subclass_meets_the_operator(calls: Calls) -> None:
    class Own(Tensor):
        pass

    calls.direct(torch.ones(2).as_subclass(Own), 2.0)
    assert calls.counts == (1, 0)


def run_dropout() -> list[Tensor]:
    x = torch.linspace(-1, 1, 60, device=DEVICE).view(3, 20).requires_grad_()
    out = dropout(x, 0.3, implementation="triton", **KEYS, **places(3))
    return [out, *torch.autograd.grad(out, x, torch.cos(out.detach()))]


def run_attention() -> list[Tensor]:
    return list(attention_case(7, heads=1, batch=1).on(DEVICE).run("triton").values())


RUNS: dict[str, Run] = {
    "dropout": run_dropout,
    "residual norm": lambda: list(ResidualNormCase((3, 24), torch.float32).run("triton").values()),
    "attention": run_attention,
}


@pytest.mark.parametrize("name", RUNS)
def test_ours_launch_directly_and_give_the_operators_bits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    with Seen() as seen:
        by_operator = RUNS[name]()
    assert any(found.startswith("disentangled.") for found in seen.names)

    monkeypatch.setattr(torch._ops.OpOverload, "__call__", refuse_ours(torch._ops.OpOverload.__call__))
    monkeypatch.setattr(torch._ops.OpOverloadPacket, "__call__", refuse_ours(torch._ops.OpOverloadPacket.__call__))
    directly = RUNS[name]()
    assert len(directly) == len(by_operator)
    assert all(torch.equal(a, b) for a, b in zip(directly, by_operator, strict=True))


def refuse_ours(call: Callable[..., Any]) -> Callable[..., Any]:
    """`call` of torch's operators, but not of ours."""

    def without_ours(operator: Any, /, *arguments: Any, **keywords: Any) -> Any:
        assert not str(operator).startswith("disentangled."), f"{operator} was called through the dispatcher"
        return call(operator, *arguments, **keywords)

    return without_ours
