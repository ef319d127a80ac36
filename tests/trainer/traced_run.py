"""One rank of a small run under observation: bytes handed to torch.distributed in a step, and bytes of all tensors.

Started by test_network_plan.py and test_memory_plan.py, once a rank, with the trainer's own arguments; the first rank
prints one line of JSON.
"""

import json
import sys
from collections import Counter
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._pytree import tree_leaves

from disentangled.trainer.allocated_bytes import AllocatedBytes
from disentangled.trainer.assemble import build_training
from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.rtd_step import GlobalCounts, RtdStep
from disentangled.trainer.run_config import load_run_config
from disentangled.trainer.train import parse_arguments

NUM_STEPS = 3


class Traffic:
    """Payload bytes of each collective over the device's group, by its name."""

    def __init__(self) -> None:
        self.bytes: Counter[str] = Counter()
        # by place among the arguments: what is reduced, or where everything is gathered to
        places = {"all_reduce": 0, "reduce": 0, "broadcast": 0, "all_gather": 0, "all_gather_into_tensor": 0,
                  "reduce_scatter": 1, "reduce_scatter_tensor": 1, "all_to_all_single": 1}  # fmt: skip
        for name, place in places.items():
            setattr(dist, name, self._counting(name, place, getattr(dist, name)))

    def _counting(self, name: str, place: int, function: Any) -> Any:
        def call(*arguments: Any, **keywords: Any) -> Any:
            value = arguments[place] if len(arguments) > place else list(keywords.values())[place]
            self.bytes[name] += sum(
                leaf.numel() * leaf.element_size() for leaf in tree_leaves(value) if isinstance(leaf, Tensor)
            )
            return function(*arguments, **keywords)

        return call


def main() -> None:
    traffic = Traffic()
    options = parse_arguments(sys.argv[1:])
    config = load_run_config(options.recipe, options.overrides)
    with AllocatedBytes(torch.device("cpu")) as allocated:
        training = build_training(config, load_ds_config(options.engine))
        rtd_step = RtdStep(training.engines, config, training.sampling, training.ranks.world_size)
        steps = training.loader.steps(0, config.schedule.total_steps)
        for number in range(NUM_STEPS):
            batches = next(steps)
            masked, live = training.ranks.sum_on_host(
                [sum(batch.num_masked for batch in batches), sum(batch.num_live for batch in batches)]
            )
            traffic.bytes.clear()
            rtd_step.run(batches, GlobalCounts(masked, live), number, training.sums)
        steps.close()
    if training.ranks.is_first:
        print(json.dumps({"traffic": traffic.bytes, "peak": allocated.peak()}))


if __name__ == "__main__":
    main()
