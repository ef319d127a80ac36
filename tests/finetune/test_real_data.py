"""Real files in their releases' own form, where they are at hand; they are not part of the project.

Not here: training on them.
"""

import subprocess
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from disentangled.finetune.find_files import find_train, find_validation
from disentangled.finetune.kinds import make_kind
from disentangled.finetune.options import FinetuneOptions
from disentangled.finetune.read_squad import read_squad
from disentangled.finetune.read_task import read_split
from disentangled.finetune.spans import STRIDE_TOKENS, find_pieces
from disentangled.finetune.tasks import find_task

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "nlu"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the benchmarks' files are not at hand")

# examples of the development set, as the data sets' papers have them
SIZES = {
    "cola": ("glue", 1043),
    "sst2": ("glue", 872),
    "stsb": ("glue", 1500),
    "commonsenseqa": ("commonsenseqa", 1221),
}


def options(task: str, folder: str) -> FinetuneOptions:
    return FinetuneOptions(task, "model", Path("output"), data=DATA / folder)


@pytest.mark.parametrize("name", SIZES)
def test_development_sets_are_whole(name: str) -> None:
    folder, size = SIZES[name]
    sets = find_validation(options(name, folder), find_task(name))
    assert [len(read_split(path, find_task(name))) for path in sets.values()] == [size]


def test_every_language_of_xnli_has_2490_balanced_pairs() -> None:
    task = find_task("xnli")
    sets = find_validation(options("xnli", "xnli"), task)
    assert len(sets) == 15 and next(iter(sets)) == "en"
    for path in sets.values():
        assert Counter(read_split(path, task)["label"]) == dict.fromkeys(task.labels, 830)


def test_tests_of_xnli_are_read_once_their_labels_are_beside_them(tmp_path: Path) -> None:
    task, folder = find_task("xnli"), DATA / "xnli"
    with pytest.raises(ValueError, match="column 'label' is missing"):
        read_split(folder / "xnli.test.de.tsv", task)
    with (tmp_path / "de.tsv").open("wb") as both:
        subprocess.run(["paste", folder / "xnli.test.de.tsv", folder / "xnli.test.labels"], stdout=both, check=True)
    assert Counter(read_split(tmp_path / "de.tsv", task)["label"]) == dict.fromkeys(task.labels, 1670)


def test_tags_of_wikiann_are_iob2_of_three_kinds() -> None:
    task = find_task("wikiann")
    (train,) = find_train(options("wikiann", "wikiann"), task)
    examples = read_split(train, task)
    assert len(examples) == 20_000
    assert make_kind(task, examples).labels == ("B-LOC", "B-ORG", "B-PER", "I-LOC", "I-ORG", "I-PER", "O")


def test_hidden_answers_of_tydiqa_are_named() -> None:
    task = find_task("tydiqa")
    with pytest.raises(ValueError, match="its answer is empty, as in releases that hide them"):
        read_split(find_validation(options("tydiqa", "tydiqa"), task)["en"], task)


@pytest.mark.parametrize("language", ["en", "sw"])
def test_answers_of_tydiqa_are_found_in_their_windows(pretrained: Path, language: str) -> None:
    examples = read_squad(DATA / "tydiqa" / f"tydiqa.goldp.{language}.train.json", has_unanswerable=False).select(
        range(60)
    )
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    encoded = make_kind(find_task("tydiqa"), examples).encode(examples, tokenizer, 384)
    found = set()
    for row in encoded:
        example = examples[row["example"]]
        start = example["starts"][0]
        first, last = find_pieces(row["spans"], start, start + len(example["answers"][0]))
        assert (first, last) == (row["start_positions"], row["end_positions"])
        if last:
            cut = example["context"][row["spans"][first][0] : row["spans"][last][1]]
            assert example["answers"][0] in cut
            found.add(row["example"])
    lengths = [len(tokenizer(row["answers"][0])["input_ids"]) for row in examples]
    whole = {index for index, length in enumerate(lengths) if length < STRIDE_TOKENS}
    assert len(whole) > 50 and whole <= found
