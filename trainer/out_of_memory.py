"""Memory that does not suffice: recognised on any device, and said with what to change.

Used by: trainer/train.py. Tested by tests/trainer/test_out_of_memory.py and tests/integration/test_faults.py.
Not here: how much a run will need (plan.py).
"""

import os
import socket

import torch

CPU_ALLOCATOR_WORDS = ("can't allocate memory", "not enough memory", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there is no memory left; torch's allocator on CPUs raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in CPU_ALLOCATOR_WORDS)


def describe_out_of_memory(error: BaseException) -> str:
    """One line: which rank, what the allocator said first, and what to change."""
    said = str(error).strip().splitlines() or ["no memory left"]
    return (
        f"rank {os.environ.get('RANK', '0')} on {socket.gethostname()} is out of memory ({said[0].rstrip('.')}): halve "
        "batch.micro_sequences, which computes the same, or take a higher ZeRO stage, offload or more ranks; the same "
        "run goes on from its last checkpoint"
    )
