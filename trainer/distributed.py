"""The processes of a run: who they are and what they agree on.

What: starts torch.distributed through DeepSpeed and keeps one gloo group for host-side numbers, so that the ranks can
agree on token counts and on stopping without asking a GPU.
Used by: trainer/assemble.py, trainer/loop.py, trainer/checkpoint.py. Tested by tests/trainer/test_distributed.py and
tests/integration/.
"""

import logging
import os
import warnings
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

# What a launcher would have set for a single rank.
ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
_set_here: set[str] = set()  # variables that join_ranks set


@dataclass(frozen=True)
class Ranks:
    """This process among the others.

    Attributes:
        host_group: a gloo group over all ranks, for numbers that live on the host.
    """

    rank: int
    world_size: int
    device: torch.device
    host_group: dist.ProcessGroup

    @property
    def is_first(self) -> bool:
        """Whether this rank writes logs and manifests."""
        return self.rank == 0

    def sum_on_host(self, values: list[int]) -> list[int]:
        """Sums of host integers over all ranks, in order."""
        total = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(total, group=self.host_group)
        return total.tolist()

    def copy_from_first(self, value: Any) -> Any:
        """The first rank's value, on every rank; those of the others are not used."""
        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.host_group)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in order, on every rank."""
        values = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.host_group)
        return values

    def wait_for_all(self) -> None:
        """Return when every rank has called this."""
        dist.barrier(group=self.host_group)


def join_ranks() -> Ranks:
    """Join the other ranks that the launcher started; alone where there was no launcher."""
    _quieten_libraries()
    missing = {name: value for name, value in ALONE.items() if name not in os.environ}
    os.environ.update(missing)
    _set_here.update(missing)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = "0" if os.environ["WORLD_SIZE"] == "1" else "29500"
        _set_here.add("MASTER_PORT")
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        # this optional op needs a C++ compiler at run time; gloo does its work, and the first start is shorter
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    else:
        accelerator.set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(verbose=False, auto_mpi_discovery=False)
    return Ranks(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        device=torch.device(accelerator.current_device_name()),
        host_group=dist.new_group(backend="gloo"),
    )


def share_threads() -> None:
    """Take this rank's part of the CPUs, unless OMP_NUM_THREADS says how many: more threads hold each other up."""
    num_here = int(os.environ.get("LOCAL_SIZE", "1"))
    if num_here > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // num_here))


def leave_ranks() -> None:
    """Close what join_ranks opened, if anything: a process that ends with gloo's threads running may abort."""
    if deepspeed.comm.is_initialized():
        deepspeed.comm.destroy_process_group()  # not torch's: DeepSpeed keeps groups, and must forget them too
    while _set_here:  # or a library that looks for a launcher, as accelerate does, would find one
        os.environ.pop(_set_here.pop(), None)


def _quieten_libraries() -> None:
    """Keep back what DeepSpeed says about itself and what a user of ours cannot act on."""
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.WARNING)
    # ZeRO-3 doubts its hooks where a model returns a dataclass: tests/integration/test_zero_stages.py shows them right
    logger.addFilter(lambda record: "unknown inputs or outputs type" not in record.getMessage())
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
