"""Every parameter must get a gradient from every backward pass; this is where it is noticed that one did not.

What: at ZeRO-3 DeepSpeed 0.19.8 never clears a parameter's gradient buffer: a parameter that a backward pass does not
reach is updated with the gradient of an earlier step, and on several ranks collectives may wait for each other. So no
parameter may be left out, not even by a micro-batch with nothing to predict. At other stages it would be a parameter
that is never trained.
Used by: trainer/engine.py. Tested by tests/trainer/test_gradient_watch.py and tests/integration/test_zero_stages.py.
"""

from collections.abc import Callable

from torch import Tensor, nn


class GradientWatch:
    """Counts which of a model's parameters the backward passes reach."""

    def __init__(self, model: nn.Module) -> None:
        self._names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self._reached: set[str] = set()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._note(name))

    def check(self) -> None:
        """Raise RuntimeError where the backward pass since the last call left a parameter out."""
        missing = [name for name in self._names if name not in self._reached]
        self._reached.clear()
        if missing:
            raise RuntimeError(
                f"no gradient reached {missing[0]}{f' and {len(missing) - 1} more' if missing[1:] else ''}: every "
                "parameter must take part in every forward pass (ZeRO-3 would apply an old gradient)"
            )

    def _note(self, name: str) -> Callable[[Tensor], None]:
        def note(parameter: Tensor) -> None:
            self._reached.add(name)

        return note
