"""What the user must mend is one line on stderr and exit code 2, before anything is trained or written."""

import json
import shutil
from pathlib import Path

import pytest

from disentangled.finetune.run_command import main
from tests.finetune.tiny_tasks import write_questions, write_rows, write_texts

ROW = {"text": "a b", "label": "yes"}


def refuse(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line of a refused command."""
    assert main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def own(train: Path, validation: Path, model: Path, output: Path, *more: str) -> tuple[object, ...]:
    files = ("--train", train, "--validation", validation, "--text-columns", "text")
    return ("--task", "sequence", *files, "--model", model, "--output", output, *more)


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "train.jsonl", 4, 1)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([ROW, ROW | {"label": "maybe"}], "dev.jsonl:2: label 'maybe' is not one of"),
        ([ROW, {"txt": "a", "label": "yes"}], "dev.jsonl:2: column 'text' is missing; there are 'txt', 'label'"),
        ([ROW, {"text": "a"}], "dev.jsonl:2: column 'label' is missing"),
        ([ROW | {"text": None}], "dev.jsonl:1: column 'text' holds None: it must be text"),
        ([], "dev.jsonl holds no examples"),
    ],
)
def test_bad_rows_are_named(
    pretrained: Path, tmp_path: Path, train: Path, capsys: pytest.CaptureFixture[str], rows: list[object], fault: str
) -> None:
    dev = write_rows(tmp_path / "dev.jsonl", rows)
    assert fault in refuse(capsys, *own(train, dev, pretrained, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_a_broken_json_line_is_named(
    pretrained: Path, tmp_path: Path, train: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev = tmp_path / "dev.jsonl"
    dev.write_text(json.dumps(ROW) + "\n{'text'\n", encoding="utf-8")
    assert "dev.jsonl:2: not valid JSON" in refuse(capsys, *own(train, dev, pretrained, tmp_path / "out"))


def test_a_score_that_is_no_number_is_named(
    pretrained: Path, tmp_path: Path, train: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refuse(capsys, *own(train, train, pretrained, tmp_path / "out", "--regression"))
    assert "train.jsonl:1: column 'label' holds" in line and "finite number" in line


def test_an_answer_that_is_not_in_its_context_is_named(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_questions(tmp_path / "a.json", 2, 1)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["data"][0]["paragraphs"][1]["qas"][0]["answers"][0]["text"] = "absent"
    path.write_text(json.dumps(content), encoding="utf-8")
    files = ("--train", path, "--validation", path)
    line = refuse(capsys, "--task", "spans", *files, "--model", pretrained, "--output", tmp_path / "out")
    assert "question 1: answer 'absent' is not in its context" in line


def test_a_tag_never_seen_in_training_is_named(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, tag in (("train", "B-LOC"), ("dev", "B-PER")):
        (tmp_path / f"{name}.tsv").write_text(f"word\tO\nother\t{tag}\n", encoding="utf-8")
    files = ("--train", tmp_path / "train.tsv", "--validation", tmp_path / "dev.tsv")
    line = refuse(capsys, "--task", "tags", *files, "--model", pretrained, "--output", tmp_path / "out")
    assert "dev.tsv:1: label 'B-PER' is not one of" in line


@pytest.mark.parametrize(
    ("removed", "fault"),
    [
        (("tokenizer.json", "tokenizer_config.json", "spm.model"), "holds no tokenizer"),
        (("config.json",), "holds no config.json"),
        (("model.safetensors",), "model"),
    ],
)
def test_an_incomplete_model_folder_is_named(
    pretrained: Path,
    tmp_path: Path,
    train: Path,
    capsys: pytest.CaptureFixture[str],
    removed: tuple[str, ...],
    fault: str,
) -> None:
    model = tmp_path / "model"
    shutil.copytree(pretrained, model)
    for name in removed:
        (model / name).unlink()
    line = refuse(capsys, *own(train, train, model, tmp_path / "out"))
    assert fault in line and str(model) in line


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (("--task", "sts"), "task 'sts' is not known: choose one of cola"),
        (("--task", "cola"), "task 'cola' needs --data"),
        (("--task", "cola", "--data", "/nowhere"), "data /nowhere is no folder"),
        (("--task", "cola", "--data", "."), "has none of CoLA/train.tsv, train.tsv"),
        (("--task", "sequence"), "name it with --train and --validation"),
        (("--task", "cola", "--text-columns", "a"), "text_columns is for one's own data"),
        (("--task", "cola", "--train", "none.tsv"), "none.tsv does not exist"),
        (("--task", "cola", "--epochs", "0"), "epochs is 0.0: it must be above 0"),
        (("--task", "cola", "--layer-decay", "2"), "layer_decay is 2.0"),
        (("--task", "cola", "--epoch", "2"), "unrecognized arguments: --epoch 2; --help lists what there is"),
        (("--task", "cola", "--search", "--grid", "lr=1"), "--grid lr=1: choose one of task_dropout"),
    ],
)
def test_bad_arguments_are_named(
    pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], fault: str
) -> None:
    assert fault in refuse(capsys, *words, "--model", pretrained, "--output", tmp_path / "out")


def test_an_output_that_holds_something_else_is_refused(
    pretrained: Path, tmp_path: Path, train: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "is not empty and holds no run" in refuse(capsys, *own(train, train, pretrained, tmp_path))
