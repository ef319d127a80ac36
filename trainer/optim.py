"""Parameter groups, the optimizer and its peak learning rates.

What: GDES is two sets of parameters, {E_G, theta_G} and {E_Delta, theta_D}, one per engine; each set is split into
weights that decay and weights that do not (biases and LayerNorm weights, as in the original). `optimizer.kind` is
adamw, stable_adamw (trainer/adamw.py) or the dotted path of a class of an installed library, which gets lr,
weight_decay, betas and eps where it has them in Adam's form, and `optimizer.options`.
ZeRO's stages 1 to 3 cut parameters into flat pieces: a library's optimizer is tried on a cut and an uncut parameter
first, and refused there if the two part.
Used by: trainer/engine.py, trainer/rtd_step.py. Tested by tests/trainer/test_optim.py.
Not here: how the rate moves (schedule.py).
"""

import importlib
import inspect
import tomllib
from collections.abc import Collection, Iterable
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor, nn

from disentangled.model.published_names import WORD_EMBEDDINGS
from disentangled.trainer.adamw import AdamW
from disentangled.trainer.key_owners import check_known
from disentangled.trainer.sections import OptimizerSection

TABLE_GROUP = "table"
# arguments of a library's class that keys of [optimizer] give
OWNED = {"lr": "learning_rate", "weight_decay": "weight_decay", "betas": "beta1 and beta2", "eps": "epsilon"}


def decays(name: str) -> bool:
    """Whether weight decay acts on the parameter of this name."""
    return not (name.endswith("bias") or name.endswith("LayerNorm.weight"))


def build_optimizer(
    model: nn.Module,
    section: OptimizerSection,
    learning_rate: float,
    zero_stage: int = 0,
    table_apart: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer over all parameters of `model` in two groups, `decay` and `no_decay`.

    Args:
        table_apart: the embedding table, which decays too, in a third group, `table`, so that it can rest.

    Raises:
        ValueError: optimizer.kind names no optimizer, or one that cannot work at this ZeRO stage.
    """
    named = list(model.named_parameters())
    groups: list[dict[str, object]] = []
    if table_apart:
        table = [p for n, p in named if n == WORD_EMBEDDINGS]
        named = [(n, p) for n, p in named if n != WORD_EMBEDDINGS]
        groups.append({"name": TABLE_GROUP, "params": table, "weight_decay": section.weight_decay})
    groups += [
        {"name": "decay", "params": [p for n, p in named if decays(n)], "weight_decay": section.weight_decay},
        {"name": "no_decay", "params": [p for n, p in named if not decays(n)], "weight_decay": 0.0},
    ]
    if "." in section.kind:
        check_library_optimizer(section, zero_stage)
    return make_optimizer(groups, section, learning_rate)


def make_optimizer(params: Iterable[Any], section: OptimizerSection, learning_rate: float) -> torch.optim.Optimizer:
    """The optimizer of [optimizer] over these parameters or groups."""
    adam: dict[str, Any] = {"lr": learning_rate, "betas": (section.beta1, section.beta2), "eps": section.epsilon}
    if section.kind == "adamw" and section.bias_correction:
        # One pass of 28 bytes a parameter. torch's own choice on a GPU makes eight of 80 bytes and takes 4 more at its
        # peak, that on a CPU is several times as slow (docs/log.md).
        is_fused = get_accelerator().device_name() in ("cpu", "cuda")
        return torch.optim.AdamW(params, **adam, fused=True if is_fused else None)
    if "." not in section.kind:
        is_stable = section.kind == "stable_adamw"
        return AdamW(params, **adam, bias_correction=section.bias_correction, clip_updates=is_stable)
    kind = find_optimizer(section.kind)
    defaults = {name: entry.default for name, entry in inspect.signature(kind).parameters.items() if name != "params"}
    given = {name: value for name, value in adam.items() if name in defaults and _alike(value, defaults[name])}
    others = [name for name in defaults if name not in given and name != "weight_decay"]
    return kind(params, **given, **parse_options(section.options, section.kind, others))


def find_optimizer(path: str) -> type[torch.optim.Optimizer]:
    """The class of a dotted path.

    Raises:
        ValueError: it is not installed, or no optimizer.
    """
    module, _, name = path.rpartition(".")
    try:
        kind = getattr(importlib.import_module(module), name, None)
    except ImportError as error:
        raise ValueError(f"optimizer.kind is {path!r}: {module} cannot be imported ({error}): install it") from error
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise ValueError(f"optimizer.kind is {path!r}: it must name a subclass of torch.optim.Optimizer")
    return kind


def parse_options(options: Iterable[str], kind: str, known: Collection[str]) -> dict[str, Any]:
    """`name=value` texts, values in TOML's spelling, as further arguments of a class: those that `known` names."""
    parsed = {}
    for option in options:
        name, separator, text = option.partition("=")
        if not separator:
            raise ValueError(f"optimizer.options holds {option!r}: write name=value")
        if name in OWNED and name not in known:
            raise ValueError(f"optimizer.options holds {option!r}: set optimizer.{OWNED[name]} instead")
        check_known(name, known, f"optimizer.options of {kind}")
        try:
            parsed[name] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError as error:
            raise ValueError(f"optimizer.options holds {option!r}: the value must be TOML, text in quotes") from error
    return parsed


def check_library_optimizer(section: OptimizerSection, zero_stage: int) -> None:
    """Raise ValueError where a library's optimizer cannot step, or cannot step what this ZeRO stage gives it."""
    kind = find_optimizer(section.kind)
    if section.weight_decay and "weight_decay" not in inspect.signature(kind).parameters:
        raise ValueError(f"optimizer.kind {section.kind} has no weight decay: set optimizer.weight_decay=0")
    try:
        whole = _two_steps(section, cut=False)
        cut = _two_steps(section, cut=True) if zero_stage else whole
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"optimizer.kind {section.kind} cannot step a matrix: {reason}") from error
    # DeepSpeed replaces an Adagrad by one of its own making, without our groups
    if zero_stage and (issubclass(kind, torch.optim.Adagrad) or not torch.allclose(whole, cut, rtol=1e-5)):
        raise ValueError(
            f"optimizer.kind {section.kind} looks at whole parameters, which ZeRO stage {zero_stage} cuts: use an "
            "--engine of stage 0, or another optimizer"
        )


def peak_learning_rates(section: OptimizerSection) -> tuple[float, float]:
    """The generator's and the discriminator's peak rates."""
    return section.learning_rate, section.discriminator_learning_rate or section.learning_rate


def _alike(value: Any, default: Any) -> bool:
    """Whether a class's argument is meant as Adam's: torch's Adafactor has two eps, other optimizers three betas."""
    if default is inspect.Parameter.empty:
        return True
    if isinstance(value, tuple):
        return isinstance(default, tuple | list) and len(default) == len(value)
    return not isinstance(default, tuple | list)


def _two_steps(section: OptimizerSection, cut: bool) -> Tensor:
    """A [4, 6] matrix after two updates, flat; `cut`: stepped as two flat halves, as ZeRO does."""
    device = get_accelerator().current_device_name()
    weights, gradient = torch.linspace(-1, 1, 24, device=device), torch.linspace(3, -1, 24, device=device) ** 3
    pieces = list(weights.chunk(2)) if cut else [weights.view(4, 6)]
    parameters = [nn.Parameter(piece.clone()) for piece in pieces]
    optimizer = make_optimizer(parameters, section, 0.01)
    for _ in range(2):
        for parameter, part in zip(parameters, gradient.chunk(len(parameters)), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])
