"""What a run costs: rates, use of the device, waiting, memory, time left.

What: tokens and seconds since the last line of the log; time spent in evaluations and checkpoints is counted apart.
TFLOP/s are of all ranks together, padding not counted; the model FLOP/s utilization (MFU, arXiv 2204.02311 appendix B)
is there where the device's peak is known. Of waiting and memory the largest of all ranks is reported: the slowest one
holds up the others.
Used by: trainer/loop.py. Tested by tests/trainer/test_speedometer.py.
"""

import contextlib
import time
from collections.abc import Iterator

import psutil
import torch
from deepspeed.accelerator import get_accelerator

from disentangled.model.config import DebertaConfig
from disentangled.model.flops import discriminator_flops, generator_flops
from disentangled.trainer.distributed import Ranks
from disentangled.trainer.pace import Pace

# keys of a row that a clock or this machine decides: two runs of the same experiment differ in them
MACHINE_KEYS = (
    "time",
    "tokens_per_second",
    "seconds_per_step",
    "achieved_tflops",
    "model_flops_utilization",
    "data_wait_seconds",
    "evaluation_seconds",
    "save_seconds",
    "device_memory_bytes",
    "process_memory_bytes",
    "remaining_seconds",
)


class Speedometer:
    """Counts since the last line.

    Args:
        generator, discriminator: of which a pass's operations are counted.
        peak_flops: of one device, None where it is not known.
    """

    def __init__(
        self,
        generator: DebertaConfig,
        discriminator: DebertaConfig,
        ranks: Ranks,
        pace: Pace,
        peak_flops: float | None,
    ) -> None:
        self._configs = generator, discriminator
        self._ranks = ranks
        self._pace = pace
        self._peak_flops = peak_flops
        self._restart()

    def _restart(self) -> None:
        self._steps = self._passes = self._tokens = self._masked = self._pairs = 0
        self._judged_tokens = 0
        self._waited_seconds = 0.0
        self._paused_seconds = {"evaluation": 0.0, "save": 0.0}
        self._started = time.perf_counter()

    def add(
        self, num_passes: int, num_tokens: int, num_masked: int, num_pairs: int, discriminator_rests: bool = False
    ) -> None:
        """Count one step over all ranks: micro-batches, live and masked tokens, query-key pairs inside documents."""
        self._steps += 1
        self._passes += num_passes
        self._tokens += num_tokens
        self._masked += num_masked
        self._pairs += num_pairs
        self._judged_tokens += 0 if discriminator_rests else num_tokens

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        """Inside, the loop has nothing to compute on."""
        started = time.perf_counter()
        yield
        self._waited_seconds += time.perf_counter() - started

    @contextlib.contextmanager
    def paused(self, kind: str) -> Iterator[None]:
        """Inside is an `evaluation` or a `save`, which is no part of a step."""
        get_accelerator().synchronize()  # steps that are still being computed are not the pause's
        started = time.perf_counter()
        yield
        seconds = time.perf_counter() - started
        self._pace.add_pause(kind, seconds)
        self._paused_seconds[kind] += seconds

    def remaining_seconds(self, step: int) -> float | None:
        """Seconds until the run has ended, from after `step`; None before the first step."""
        return self._pace.remaining_seconds(step, self._steps, self._seconds())

    def take(self, step: int) -> dict[str, float]:
        """The numbers of one line, after `step`; counting begins anew. Called by every rank."""
        seconds, steps, passes = self._seconds(), max(1, self._steps), max(1, self._passes)
        generator, discriminator = self._configs
        length = self._pairs // max(1, self._tokens)  # the mean one that a token's queries meet
        tokens = self._tokens // passes
        flops = passes * generator_flops(generator, tokens, self._masked // passes, length)
        if self._judged_tokens:
            judging = passes * self._judged_tokens / self._tokens
            flops += round(judging * discriminator_flops(discriminator, tokens, length))
        self._pace.add_line(steps, seconds)
        memory, name = memory_bytes(self._ranks.device)
        of_ranks = self._ranks.gather((self._waited_seconds / steps, memory))
        row = {
            "time": round(time.time(), 3),
            "tokens_per_second": self._tokens / seconds,
            "seconds_per_step": seconds / steps,
            "achieved_tflops": flops / seconds / 1e12,
            "data_wait_seconds": max(wait for wait, _ in of_ranks),  # of a step
            "evaluation_seconds": self._paused_seconds["evaluation"],
            "save_seconds": self._paused_seconds["save"],
            name: max(used for _, used in of_ranks),
            "remaining_seconds": self._pace.remaining_seconds(step) or 0.0,
        }
        if self._peak_flops is not None:
            row["model_flops_utilization"] = flops / seconds / (self._peak_flops * self._ranks.world_size)
        self._restart()
        return row

    def _seconds(self) -> float:
        paused = sum(self._paused_seconds.values())
        return max(1e-9, time.perf_counter() - self._started - paused)


def memory_bytes(device: torch.device) -> tuple[int, str]:
    """What this rank uses, and the name under which it is logged.

    On a GPU the most that its tensors ever took, on a CPU what the process holds in memory now.
    """
    if device.type == "cpu":
        return psutil.Process().memory_info().rss, "process_memory_bytes"
    return get_accelerator().max_memory_allocated(), "device_memory_bytes"
