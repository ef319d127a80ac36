"""Ranks are joined and left more than once in a process, as by a notebook that measures and then trains."""

import os

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.utils import groups

from disentangled.trainer.distributed import join_ranks, leave_ranks


def test_groups_and_variables_of_ranks_that_were_left_are_forgotten() -> None:
    environment = dict(os.environ)
    for _ in range(2):
        ranks = join_ranks()
        try:
            group = groups._clone_world_group()  # made once and kept by DeepSpeed, which every engine asks for it
            assert dist.get_global_rank(group, 0) == ranks.rank == 0
            assert ranks.gather("here") == ["here"]
            deepspeed.comm.all_reduce(torch.ones(1), group=group)
        finally:
            leave_ranks()
    assert not dist.is_initialized()
    leave_ranks()  # nothing to leave
    assert os.environ == environment
