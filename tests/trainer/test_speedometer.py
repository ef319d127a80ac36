import time

import psutil
import pytest

from disentangled.model.config import DebertaConfig
from disentangled.model.flops import discriminator_flops, generator_flops, step_flops
from disentangled.trainer import speedometer
from disentangled.trainer.pace import Pace
from disentangled.trainer.speedometer import MACHINE_KEYS, Speedometer
from tests.trainer.tiny_run import CPU

CONFIG = DebertaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)


class TwoRanks:
    """The other rank waits 3 seconds a step and holds a petabyte."""

    rank, world_size, device, is_first = 0, 2, CPU, True

    def gather(self, value: tuple[float, int]) -> list[tuple[float, int]]:
        return [value, (3.0, 10**15)]


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(speedometer.time, "perf_counter", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def make_speedometer(peak_flops: float | None = None, total_steps: int = 10) -> Speedometer:
    pace = Pace(total_steps, evaluate_every=4, checkpoint_every=0)
    return Speedometer(CONFIG, CONFIG, TwoRanks(), pace, peak_flops)  # type: ignore[arg-type]


def test_rates_leave_out_evaluations_and_checkpoints(clock: Clock) -> None:
    speed = make_speedometer(peak_flops=1e9)
    for _ in range(4):
        with speed.waiting_for_data():
            clock.now += 0.5
        clock.now += 1.5
        speed.add(num_passes=6, num_tokens=1200, num_masked=120, num_pairs=12000)
    with speed.paused("evaluation"):
        clock.now += 50
    with speed.paused("save"):
        clock.now += 7
    assert speed.remaining_seconds(4) == pytest.approx(6 * 2.0 + 2 * 50 + 7)  # evaluated at 8 and 10, saved at 10
    row = speed.take(4)
    assert row["tokens_per_second"] == pytest.approx(4800 / 8)
    assert row["seconds_per_step"] == pytest.approx(2)
    assert (row["evaluation_seconds"], row["save_seconds"]) == (50, 7)
    assert row["remaining_seconds"] == pytest.approx(6 * 2.0 + 2 * 50 + 7)
    flops = 24 * step_flops(CONFIG, CONFIG, 200, 20, 10)  # 4 steps of 3 micro-batches on 2 ranks
    assert row["achieved_tflops"] == pytest.approx(flops / 8 / 1e12)
    assert row["model_flops_utilization"] == pytest.approx(flops / 8 / 2e9)
    assert abs(row["time"] - time.time()) < 60
    assert row.keys() <= set(MACHINE_KEYS)

    clock.now += 1
    speed.add(6, 1000, 100, 10000)
    row = speed.take(5)
    assert row["tokens_per_second"] == pytest.approx(1000)
    assert (row["evaluation_seconds"], row["save_seconds"]) == (0, 0)


def test_a_discriminator_that_rests_is_not_counted(clock: Clock) -> None:
    speed = make_speedometer()
    clock.now += 2
    speed.add(2, 400, 40, 4000, discriminator_rests=True)
    alone = speed.take(1)["achieved_tflops"]
    assert alone == pytest.approx(2 * generator_flops(CONFIG, 200, 20, 10) / 2 / 1e12)
    clock.now += 2
    speed.add(2, 400, 40, 4000, discriminator_rests=True)
    speed.add(2, 400, 40, 4000)
    both = 4 * generator_flops(CONFIG, 200, 20, 10) + 2 * discriminator_flops(CONFIG, 200, 10)
    assert speed.take(3)["achieved_tflops"] == pytest.approx(both / 2 / 1e12)


def test_the_slowest_rank_and_the_largest_count(clock: Clock) -> None:
    speed = make_speedometer()
    with speed.waiting_for_data():
        clock.now += 2
    speed.add(6, 10, 1, 10)
    row = speed.take(1)
    assert (row["data_wait_seconds"], row["process_memory_bytes"]) == (3.0, 10**15)
    assert "model_flops_utilization" not in row and "device_memory_bytes" not in row  # not invented on a CPU


def test_memory_of_a_cpu_rank_is_what_the_process_holds() -> None:
    used, name = speedometer.memory_bytes(CPU)
    assert name == "process_memory_bytes"
    assert used == pytest.approx(psutil.Process().memory_info().rss, rel=0.1)
