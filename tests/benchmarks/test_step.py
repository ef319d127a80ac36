"""The whole-step benchmark in a small size: what disagrees gets no number, and rows and tables say what was run."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import step as command
from benchmarks import step_breakdown
from benchmarks.step_breakdown import PARTS, PartClock, watch_functions
from benchmarks.step_problem import StepProblem, load_sizes, make_checked_problem, make_problem
from benchmarks.step_report import goal_lines
from benchmarks.step_rivals import RivalStep, Way
from benchmarks.step_rounds import Contestant, check_answer, time_contestants
from benchmarks.step_variants import DELTA, VARIANTS, OurStep, exact_answer, make_weights, our_answer, rival_answer
from disentangled.trainer.distributed import leave_ranks
from tests.benchmarks.own_tests import end_own_tests

CPU = torch.device("cpu")
SMALL = (
    "model.hidden_size=32", "model.num_attention_heads=2", "model.intermediate_size=48", "model.vocab_size=300",
    "model.num_hidden_layers=2", "data.sequence_length=32", "batch.micro_sequences=3",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def alone() -> Iterator[None]:
    """One rank in this process, and nothing of it left behind."""
    with pytest.MonkeyPatch.context() as patched:
        for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
            patched.setenv(name, value)
        patched.setenv("MASTER_PORT", "0")
        yield
        leave_ranks()


@pytest.fixture(scope="module")
def problem() -> StepProblem:
    """Two micro-batches of full rows."""
    return make_problem(load_sizes("tiny", SMALL, 2), "fp32", "fixed", CPU)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Runs the command without its tests, which are in this suite; gives the exit code and the rows."""
    monkeypatch.setattr(command, "leave_ranks", lambda: None)  # the module's tests share one

    def call(*arguments: str, red: bool = False) -> tuple[int, list[dict[str, Any]]]:
        end_own_tests(monkeypatch, code=int(red))
        code = command.main(["--output", str(tmp_path), "--rounds", "2", "--threads", "1", *arguments, *SMALL])
        path = tmp_path / "step.jsonl"
        return code, [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    return call


def test_rows_tables_and_picture_say_what_was_run(run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    variants = ("--variants", "original,ours,transformers", "--encoders", "ours,deberta,bert,modernbert")
    code, rows = run("--precisions", "bf16", *variants)
    assert code == 0
    steps = [(row["variant"], row["case"]) for row in rows if row["kind"] == "step"]
    assert steps == [("ours", "fixed"), ("original", "fixed"), ("transformers", "fixed"), ("ours", "mixed")]
    assert [row["variant"] for row in rows if row["kind"] == "encoder"] == ["ours", "deberta", "bert", "modernbert"]
    for row in rows:
        assert "error" not in row and row["wall_seconds"] > 0 and row["rounds"] == 2 and row["versions"]["torch"]
        assert row["tokens_per_second"] == pytest.approx(row["live_tokens"] / row["wall_seconds"])
        low, high = row["cpu_ratio_range"]
        assert low <= row["cpu_ratio"] <= high and row["peak_bytes"] > 0
        assert set(row.get("parts_seconds", PARTS)) == set(PARTS)
    assert rows[0]["cpu_ratio"] == 1 and rows[0]["achieved_tflops"] > 0 and rows[0]["mfu"] is None
    printed = capsys.readouterr().out
    assert "step, tiny (1 and 2 layers of 32, 300 ids, 1 x 3 x 32 tokens" in printed
    assert "speed of transformers' best" in printed and "mixed lengths" in printed
    assert (tmp_path / "step.png").stat().st_size > 10_000


def test_red_tests_give_no_number(run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(red=True) == (1, [])
    assert "red tests, so no numbers" in capsys.readouterr().out


def test_a_wrong_gradient_is_an_error_without_times(problem: StepProblem) -> None:
    checked = make_checked_problem(problem.config, "fp32", CPU)
    weights = make_weights(checked)
    exact, eager = exact_answer(checked, weights), rival_answer(RivalStep(checked, weights, Way()), checked)

    def build(wrong: str) -> OurStep:
        built = OurStep(checked, weights, compiled=False)
        modules = {"generator": built.engines.generator.module, "discriminator": built.engines.discriminator.module}
        for model, module in modules.items():
            for name, parameter in module.named_parameters():
                if f"{model} {name}" == wrong:
                    parameter.register_hook(lambda gradient: gradient * 1.001)
        return built

    planted = f"discriminator {DELTA}"
    contestants = [
        Contestant(
            name, "fixed", partial(build, name), lambda step: check_answer(our_answer(step, checked), eager, exact),
            has_parts=False, counts_memory=False,
        )
        for name in ("nothing", planted, "generator deberta.encoder.rel_embeddings.weight")
    ]  # fmt: skip
    right, *wrong = time_contestants(contestants, 1, (1,), CPU, float("inf"))
    assert "error" not in right
    assert [row["error"].split()[1] for row in wrong] == ["discriminator", "generator"]
    assert not any("seconds" in key for row in wrong for key in row)


def test_every_parameter_of_a_rival_moves_as_ours_do(problem: StepProblem) -> None:
    """All but those that its ordinary pass of the last layer leaves without use, after a step on the same draws."""
    weights = make_weights(problem)
    for way in (Way(), Way(original=True)):
        rival = RivalStep(problem, weights, way)
        before = {name: p.detach().clone() for name, p in rival.generator.named_weights()}
        assert set(before) == set(weights["generator"])
        rival.run(0)
        assert all(not torch.equal(p, before[name]) for name, p in rival.generator.named_weights())
        moved = dict(rival.discriminator.named_parameters())
        assert set(moved) == set(weights["discriminator"])
        assert all(not torch.equal(moved[name], value) for name, value in weights["discriminator"].items())


def test_one_rank_copies_no_gradients_into_buckets(problem: StepProblem, monkeypatch: pytest.MonkeyPatch) -> None:
    reduced = []
    step = OurStep(problem, make_weights(problem), compiled=False)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor, *rest, **more: reduced.append(tensor.numel()))
    step.run(0)
    assert max(reduced, default=0) <= 1, "DeepSpeed's flags alone may be reduced"


def test_mixed_rows_are_packed_and_keyed_by_no_more_than_the_seed(problem: StepProblem) -> None:
    long = load_sizes("small", ["batch.micro_sequences=8", "model.vocab_size=400"], 1)
    one, two = (make_problem(long, "fp32", "mixed", CPU) for _ in range(2))
    batch = one.batches[0]
    assert batch.num_documents > 8 and batch.num_live > 0.95 * batch.num_tokens
    assert torch.equal(batch.buffer, two.batches[0].buffer)
    for replaced, batch in zip(problem.replaced, problem.batches, strict=True):
        changed = (replaced != batch.original_ids).nonzero().flatten()
        assert 0 < len(changed) < batch.num_masked and set(changed.tolist()) <= set(batch.masked_rows.tolist())


def test_time_is_charged_to_the_innermost_part(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])
    monkeypatch.setattr(step_breakdown.time, "process_time", lambda: next(moments))
    clock = PartClock(CPU)
    with clock.part("generator"):
        pass  # outside of start() and seconds() nothing is read
    clock.start()
    with clock.part("generator"), clock.part("sampling"):
        pass
    assert clock.seconds() == dict.fromkeys(PARTS, 0.0) | {"rest": 6.0, "generator": 6.0, "sampling": 3.0}


def test_draws_of_ours_are_seen_as_sampling(problem: StepProblem) -> None:
    step = OurStep(problem, make_weights(problem), compiled=False)
    with watch_functions(step.clock):
        step.clock.start()
        step.run(0)
        spent = step.clock.seconds()
    assert all(spent[part] > 0 for part in ("generator", "sampling", "discriminator", "optimizer"))


def row_of(variant: str, seconds: float, case: str = "fixed", **more: Any) -> dict[str, Any]:
    found = {"variant": variant, "case": case, "threads": 1, "device": "AMD EPYC", "mfu": None, "peak_bytes": 4}
    found |= {
        f"{clock}_{name}": value
        for clock in ("wall", "cpu")
        for name, value in (("seconds", seconds), ("ratio", seconds))
    }
    return found | {"tokens_per_cpu_second": 100 / seconds, "tokens_per_second": 100 / seconds} | more


@pytest.mark.parametrize(("slow", "verdict"), [(1.59, "missed"), (1.61, "held")])
def test_goals_are_judged_by_the_best_of_transformers(slow: float, verdict: str) -> None:
    rows = [row_of("ours", 1.0), row_of("transformers", 2.0), row_of("transformers_compiled", slow)]
    lines = list(goal_lines("step", {(row["variant"], row["case"]): row for row in rows}))
    assert lines == [f"  {verdict}: speed of transformers' best {slow:.2f}, goal 1.60"]


def test_goals_of_a_gpu_name_what_is_not_known() -> None:
    gpu = {"device": "NVIDIA H200"}
    rows = [row_of("ours", 1.0, mfu=0.5, **gpu), row_of("transformers", 2.9, peak_bytes=9, **gpu)]
    rows.append(row_of("ours", 1.1, case="mixed", **gpu))
    lines = list(goal_lines("step", {(row["variant"], row["case"]): row for row in rows}))
    assert [line.split(":")[0].strip() for line in lines] == ["missed", "unknown", "held", "held", "missed"]


def test_variants_that_need_a_gpu_are_named() -> None:
    assert [name for name, variant in VARIANTS.items() if variant.needs_gpu] == ["disentangled_flash"]
