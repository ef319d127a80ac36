"""The demo's whole road on a small text, cut to a few steps; and the English that it finds on every machine."""

import sys
from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from disentangled.trainer.demo import next_free_folder, pieces_for, write_python_english
from disentangled.trainer.metric_log import read_rows
from tests.data_prep.tiny_corpus import make_documents, write_txt
from tests.launching import run_command
from tests.trainer.tiny_run import SMALLEST

DEMO = (sys.executable, "-m", "disentangled.trainer.demo")


def test_demo_ends_with_a_model_a_report_and_the_next_command(tmp_path: Path):
    text = write_txt(tmp_path / "corpus.txt", make_documents(600))
    cut = (*SMALLEST, "schedule.total_steps=6", "log.every_steps=2", "evaluate.every_steps=0")
    finished = run_command(*DEMO, "--text", str(text), "--output", str(tmp_path / "runs"), *cut)
    assert finished.code == 0, finished
    folder = tmp_path / "runs" / "demo"
    model = AutoModel.from_pretrained(folder / "huggingface")
    ids = AutoTokenizer.from_pretrained(folder / "huggingface")("The text.", return_tensors="pt")
    assert model(**ids).last_hidden_state.isfinite().all()
    assert "<svg " in (folder / "run" / "report.html").read_text(encoding="utf-8")
    held_out = [row for row in read_rows(folder / "run" / "metrics.jsonl") if "validation_mlm_loss" in row][-1]
    assert f"MLM loss {held_out['validation_mlm_loss']:.2f} nats" in finished.stdout
    assert f"AUC {held_out['validation_rtd_auc']:.3f}" in finished.stdout
    assert finished.stdout.rstrip().endswith("make demo TEXT=path/to/text")


def test_demo_without_its_text_is_one_line(tmp_path: Path):
    finished = run_command(*DEMO, "--text", str(tmp_path / "absent.txt"), "--output", str(tmp_path / "runs"))
    assert finished.code == 2
    assert finished.stderr.strip().splitlines() == [
        f"error: text {tmp_path / 'absent.txt'} does not exist: give a file or a folder"
    ]
    assert not (tmp_path / "runs").exists()


def test_python_english_is_enough_to_train_on(tmp_path: Path):
    path = tmp_path / "english.txt"
    write_python_english(path)
    text = path.read_text(encoding="utf-8")
    assert len(text) > 1_500_000
    documents = text.split("\n\n")
    assert len(documents) > 400
    assert all(document.strip() for document in documents)
    assert pieces_for(path) == 2048


def test_each_demo_gets_a_folder_of_its_own(tmp_path: Path):
    assert [next_free_folder(tmp_path).name for _ in range(3)] == ["demo", "demo-2", "demo-3"]
