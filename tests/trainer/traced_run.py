"""One rank of a small run under observation: bytes handed to torch.distributed in a step, and bytes of all tensors.

Started by test_network_plan.py and test_memory_plan.py, once a rank, with the trainer's own arguments; the first rank
prints one line of JSON. Every tensor that is made is seen by a dispatch mode, and its storage counted until it is freed.
"""

import json
import sys
import weakref
from collections import Counter
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.run_config import load_run_config
from disentangled.trainer.train import build_training, parse_arguments

NUM_STEPS = 3


class AliveBytes(TorchDispatchMode):
    """Bytes of all storages that were made inside and still exist; their largest sum in `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._count(value)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        size = storage.nbytes()
        if key not in self._sizes:
            weakref.finalize(storage, self._free, key)
        self.now += size - self._sizes.get(key, 0)
        self._sizes[key] = size
        self.peak = max(self.peak, self.now)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


class Traffic:
    """Payload bytes of each collective over the device's group, by its name."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        for name, place in (
            ("all_reduce", 0), ("reduce", 0), ("broadcast", 0), ("all_gather_into_tensor", 0), ("all_gather", 0),
            ("_all_gather_base", 0), ("reduce_scatter_tensor", 1), ("_reduce_scatter_base", 1), ("reduce_scatter", 1),
            ("all_to_all_single", 0),
        ):  # fmt: skip
            if hasattr(dist, name):
                setattr(dist, name, self._counting(name, place, getattr(dist, name)))

    def _counting(self, name: str, place: int, function: Any) -> Any:
        names = {"all_reduce": "tensor", "reduce": "tensor", "broadcast": "tensor", "all_gather": "tensor_list",
                 "reduce_scatter": "input_list"}  # fmt: skip
        keyword = names.get(
            name, "output_tensor" if "gather" in name else "input_tensor" if "scatter" in name else "input"
        )

        def call(*arguments: Any, **keywords: Any) -> Any:
            value = arguments[place] if len(arguments) > place else keywords.get(keyword, keywords.get("output"))
            self.bytes[name.strip("_").replace("_base", "")] += sum(
                leaf.numel() * leaf.element_size() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)
            )
            return function(*arguments, **keywords)

        return call


def main() -> None:
    traffic = Traffic()
    options = parse_arguments(sys.argv[1:])
    config = load_run_config(options.recipe, options.overrides)
    with AliveBytes() as alive:
        training = build_training(config, load_ds_config(options.engine))
        built = alive.now
        rtd_step = RtdStep(training.engines, config, training.sampling, training.ranks.world_size)
        steps = training.loader.steps(0, config.schedule.total_steps)
        for number in range(NUM_STEPS):
            batches = next(steps)
            masked, live = training.ranks.sum_on_host(
                [sum(batch.num_masked for batch in batches), sum(batch.num_live for batch in batches)]
            )
            traffic.bytes.clear()
            alive.peak = alive.now
            rtd_step.run(batches, GlobalCounts(masked, live), number, training.sums)
        steps.close()
    if training.ranks.is_first:
        print(json.dumps({"traffic": traffic.bytes, "built": built, "resting": alive.now, "peak": alive.peak}))


if __name__ == "__main__":
    main()
