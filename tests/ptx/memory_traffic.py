"""What our attention asks of first-level memory: `python -m tests.ptx.memory_traffic CAPABILITY N [TERMS]`.

What: one head of N tokens of width 64 in bfloat16, position buckets as published, runs on the machine of machine.py,
forward and backward, with the position terms `c2p+p2c`, `c2p`, `p2c` or `none`; each access of a warp is looked at.
Printed for each kernel, over tiles of 64 x 64 scores: instructions that warps issue (PTX's; ptxas makes fewer: it
adds up addresses in loads), barriers, and turns of memory. A multiprocessor of sm_80 and sm_90 issues four
instructions a cycle, and in either memory takes a turn of 128 bytes.

- Global, at least: an access's different bytes by 128, and no fewer than one turn.
- Global, at most: pieces of 128 bytes that it touches. What several pieces cost is known to a GPU alone.
- Shared: also one more turn for each other word of a bank that is asked for at once.

Used for: docs/log.md. Tested by: tests/ptx/test_memory_traffic.py. Not here: time; what wgmma reads by itself.
"""

import sys
from collections import Counter
from random import Random

import numpy as np
import torch

from benchmarks.launches import Launch, caught
from disentangled.kernels.disentangled_attention import attention_call, tile_sizes
from disentangled.kernels.disentangled_attention import launch as launcher
from disentangled.kernels.disentangled_attention.log_bucket import Positions
from tests.ptx.arithmetic import LANES, Lanes
from tests.ptx.launch import run
from tests.ptx.machine import Machine, Step
from tests.ptx.program import Instruction, Program

TURN_BYTES, BANKS, WORD_BYTES = 128, 32, 4
WIDTH, TILE = 64, 64
HEAD = f"{'kernel':16} {'instructions':>12} {'barriers':>9} {'global, at least':>17} {'at most':>8} {'shared':>7}"


class Traffic:
    """Counts of one kernel."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def machine(self, program: Program) -> Machine:
        """A machine that counts what it does."""
        counts = self.counts

        class Counting(Machine):
            def _step(self, instruction: Instruction, program: Program) -> Step:
                step = super()._step(instruction, program)
                kind = "barriers" if instruction.parts[:2] == ("bar", "sync") else "others"

                def counted(warp, active):  # type: ignore[no-untyped-def]
                    counts[kind] += 1
                    return step(warp, active)

                return counted

        return Counting(program)

    def watch(self, space: str, addresses: Lanes, size: int) -> None:
        """Add an access of a warp."""
        if addresses.size > LANES:
            return  # by wgmma
        if space == "shared":
            self.counts["shared"] += shared_turns(addresses, size)
        else:
            self.counts["global, at least"] += -(-len(np.unique(addresses)) * size // TURN_BYTES)
            self.counts["global, at most"] += len(np.unique(addresses // TURN_BYTES))


def shared_turns(addresses: Lanes, size: int) -> int:
    """128 bytes of lanes at a time, and one more for each other word of a bank."""
    words_each = max(1, size // WORD_BYTES)
    together = LANES // words_each
    turns = 0
    for start in range(0, addresses.size, together):
        words = addresses[start : start + together, None] // WORD_BYTES + np.arange(words_each)
        turns += int(np.bincount(np.unique(words) % BANKS).max())
    return turns


def measure(capability: int, num_tokens: int, terms: str) -> dict[str, Traffic]:
    """Counts by kernel."""
    found: dict[str, Traffic] = {}

    def count(launch: Launch) -> None:
        name = launch.name.removesuffix("_kernel") + " (far)" * bool(launch.arguments.get("IS_FAR"))
        traffic = found.setdefault(name, Traffic())
        run(launch, capability, Random(0), traffic.machine, traffic.watch)

    generator = torch.Generator().manual_seed(0)
    query, key, value, grad_out = (
        torch.randn(1, num_tokens, 1, WIDTH, generator=generator).bfloat16() for _ in range(4)
    )
    table = torch.randn(1, 512, WIDTH, generator=generator).bfloat16()
    tables = [table if term in terms else None for term in ("c2p", "p2c")]
    problem = attention_call.Problem(positions=Positions(256, 512), scale=(3 * WIDTH) ** -0.5)
    with caught(count, capability, attention_call, launcher, tile_sizes):
        out, lse = launcher.forward(query, key, value, *tables, problem)
        launcher.backward(grad_out, query, key, value, *tables, out, lse, problem)
    return found


def main(capability: str = "90", num_tokens: str = "512", terms: str = "c2p+p2c") -> None:
    """Prints the table."""
    num_tiles = (int(num_tokens) / TILE) ** 2
    print(HEAD)
    for name, traffic in measure(int(capability), int(num_tokens), terms).items():
        counts = {kind: count / num_tiles for kind, count in traffic.counts.items()}
        print(
            f"{name:16} {counts['others']:12,.0f} {counts.get('barriers', 0):9,.0f}"
            f" {counts['global, at least']:17,.0f} {counts['global, at most']:8,.0f} {counts.get('shared', 0):7,.0f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
