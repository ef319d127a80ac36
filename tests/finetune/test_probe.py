"""The probe suite on models that take seconds: its table, its folders, and what a second call does again."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from disentangled.finetune import probe as probes
from disentangled.finetune.find_files import find_validation
from disentangled.finetune.probe import Probe, choose_probes, main
from disentangled.finetune.tasks import find_task
from tests.finetune.tiny_pretrained import write_pretrained

RATES = (1e-3, 1e-9)  # nothing is learnt at the second
SENTENCES = [(f"{word} {number}", label) for number in range(12) for word, label in (("good", 1), ("bad", 0))]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """SST-2 of 24 sentences, which are the development set too."""
    folder = tmp_path / "data"
    (folder / "SST-2").mkdir(parents=True)
    text = "sentence\tlabel\n" + "".join(f"{sentence}\t{label}\n" for sentence, label in SENTENCES)
    for name in ("train.tsv", "dev.tsv"):
        (folder / "SST-2" / name).write_text(text)
    return folder


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(probes.SUITES, "quick", (Probe("sst2", None, 2, 16, RATES, batch_size=8),))


def call(data: Path, output: Path, *arguments: str) -> int:
    return main(["--data", str(data), "--output", str(output), *arguments])


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.usefixtures("suite")
def test_every_model_is_a_row_and_what_is_done_is_not_done_again(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = write_pretrained(tmp_path / "small"), tmp_path / "out"
    assert call(data, output, "--model", str(model), "--scratch", "--seeds", "2") == 0
    rows = read_rows(output / "probe.jsonl")
    assert [(row["label"], row["task"], row["metric"]) for row in rows] == [
        ("from scratch", "sst2", "accuracy"),
        ("small", "sst2", "accuracy"),
    ]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert lines[0] == "| | sst2, accuracy |" and lines[2].startswith("| from scratch | ") and len(lines) == 4
    for row in rows:
        values = row["values"]
        assert isinstance(values, list) and len(values) == 2
        assert row["mean"] == pytest.approx(sum(values) / 2)
    scratch, trained = (
        json.loads((output / label / "sst2" / "rate_0.001" / "seed_1" / "results.json").read_text())["options"]
        for label in ("from_scratch", "small")
    )
    assert scratch["from_scratch"] and not trained["from_scratch"]
    assert {**scratch, "from_scratch": False, "output": trained["output"]} == trained

    of_rates = {
        rate: [
            json.loads((output / "small" / "sst2" / f"rate_{rate:g}" / f"seed_{seed}" / "results.json").read_text())
            for seed in (1, 2)
        ]
        for rate in RATES
    }
    means = {rate: sum(result["selected"] for result in results) / 2 for rate, results in of_rates.items()}
    assert rows[1]["mean"] == max(means.values()) and means[rows[1]["learning_rate"]] == max(means.values())  # type: ignore[index]

    done = output / "small" / "sst2" / "rate_0.001" / "seed_1" / "results.json"
    before = done.stat().st_mtime_ns
    other = write_pretrained(tmp_path / "other")
    assert call(data, output, "--model", str(model), str(other), "--seeds", "2") == 0
    assert done.stat().st_mtime_ns == before
    assert [row["label"] for row in read_rows(output / "probe.jsonl")] == ["small", "other"]


@pytest.mark.usefixtures("suite")
def test_checkpoints_of_a_run_are_exported_and_their_scores_lie_by_step(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports: list[str] = []

    class Exported:
        returncode = 0

    def export(command: Sequence[str], **options: object) -> Exported:
        words = dict(zip(command[3::2], command[4::2], strict=True))
        exports.append(words["--checkpoint"])
        write_pretrained(Path(words["--output"]))
        return Exported()

    monkeypatch.setattr(probes.subprocess, "run", export)
    run = tmp_path / "run"
    for name in ("step_00000020", "step_00000010", "step_00000030.partial"):
        (run / "checkpoints" / name).mkdir(parents=True)
    assert call(data, tmp_path / "out", "--run", str(run), "--seeds", "1") == 0
    assert exports == ["step_00000010", "step_00000020"]
    rows = read_rows(run / "probe.jsonl")
    assert [row["step"] for row in rows] == [10, 20] and all(0 <= row["probe_sst2"] <= 1 for row in rows)  # type: ignore[operator]


def test_tasks_narrow_a_suite() -> None:
    assert [item.task for item in choose_probes("quick", None)] == ["sst2", "cola", "stsb"]
    assert [item.task for item in choose_probes("quick", ["stsb", "sst2"])] == ["stsb", "sst2"]


def test_xnli_is_probed_in_english_alone(tmp_path: Path) -> None:
    """However many languages lie beside one another: table 2 of arXiv 2111.09543 has English."""
    item = choose_probes("quick_xnli", ["xnli"])[0]
    options = probes.options_of(probes.Subject("model", tmp_path), item, 1e-3, tmp_path, tmp_path / "out", seed=1)
    for name in ("dev-en.tsv", "dev-de.tsv"):
        (tmp_path / name).write_text("A man sleeps.\tHe rests.\tentailment\n")
    assert list(find_validation(options, find_task("xnli"))) == ["en"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to probe"),
        (["--run", "no/such"], "run no/such holds no checkpoint"),
        (["--model", "a/x", "b/x"], "two models are called 'x'"),
        (["--model", "x", "--seeds", "0"], "--seeds is 0"),
        (["--model", "x", "--tasks", "sst2", "sst3"], "'sst3' is not in suite 'quick': there are sst2, cola, stsb"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert call(tmp_path, tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
