"""prepare_text.py: what the tokenizer is trained on, and copies, over several units and sources."""

from pathlib import Path
from typing import Any

import pytest
from rich.progress import Progress

from disentangled.data_prep import prepare_text as module
from disentangled.data_prep.build_options import BuildOptions
from disentangled.data_prep.clean import CleaningRules
from disentangled.data_prep.find_inputs import find_grouped_files
from disentangled.data_prep.prepare_text import prepare_text
from disentangled.data_prep.prepared_text import PreparedText
from disentangled.data_prep.sources import Source
from disentangled.data_prep.split import split_hash
from disentangled.data_prep.task_pool import SerialPool
from disentangled.data_prep.work_units import Unit, plan_units
from tests.data_prep.tiny_corpus import make_documents, write_txt

BIG, LOW = make_documents(200, seed=1), make_documents(40, seed=2)
WITH_COPIES = [*LOW[:20], *BIG[:20], *LOW]


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model_path: Path) -> Any:
    """Gives a function that prepares two sources and returns units, what was found and the lines to train on."""

    def run(
        weights: tuple[float, float] = (1, 1), low: list[str] = WITH_COPIES, **options: Any
    ) -> tuple[list[Unit], PreparedText, list[str]]:
        lines: list[str] = []

        def take_lines(given: list[str], training: object) -> bytes:
            lines.extend(given)
            return model_path.read_bytes()

        monkeypatch.setattr(module, "train_model_in_child", take_lines)
        write_txt(tmp_path / "big.txt", BIG)
        write_txt(tmp_path / "low.txt", low)
        names = ("big", "low")
        sources = [
            Source(name, weight, (str(tmp_path / f"{name}.txt"),)) for name, weight in zip(names, weights, strict=True)
        ]
        files = find_grouped_files([source.inputs for source in sources])
        units = plan_units(list(zip(names, files, strict=True)), 2000)
        folder = tmp_path / "out"
        (folder / "unfinished").mkdir(parents=True)
        given = BuildOptions(output="out", inputs=("x",), vocab_size=400, **{"validation_fraction": 0.1, **options})
        prepared, _ = prepare_text(SerialPool(), units, sources, given, None, folder, Progress(disable=True))
        monkeypatch.setattr(module, "train_model_in_child", None)
        again, _ = prepare_text(SerialPool(), units, sources, given, None, folder, Progress(disable=True))
        assert (again.thresholds, again.copies.tolist()) == (prepared.thresholds, prepared.copies.tolist())
        return units, prepared, lines

    return run


def test_copies_are_all_but_the_first_of_any_source(prepare: Any):
    units, prepared, _ = prepare(cleaning=CleaningRules(drop_duplicates=True))
    names = ["big.txt", "low.txt"]
    copies = [place for unit in units for place in prepared.copies_in(unit, dict(enumerate(names)))]
    repeats = [repeat for unit in units for repeat in prepared.copies_in(unit, dict(enumerate(names))).values()]
    assert len(copies) == 20 + 20
    assert {file for file, _, _ in copies} == {1}
    assert [repeat.file for repeat in repeats].count("big.txt") == 20
    assert {repeat.reason for repeat in repeats} == {"duplicate"}
    low = Path(units[-1].parts[0].file.path).read_bytes()
    found = sorted(low[start:].split(b"\n\n")[0].decode().strip() for _, start, _ in copies)
    assert found == sorted([*BIG[:20], *LOW[:20]])


@pytest.mark.parametrize("floor", [0, 15])
def test_training_lines_are_neither_validation_text_nor_copies(prepare: Any, floor: int):
    _, prepared, lines = prepare(cleaning=CleaningRules(drop_duplicates=True), validation_floor=floor)
    expected = []
    for name, texts in (("big", BIG), ("low", LOW)):
        kept = [text for text in texts if split_hash(text.encode(), 1) >= prepared.thresholds[name]]
        assert len(texts) - len(kept) >= max(floor, 1)
        expected += [line for text in kept for line in text.split("\n")]
    assert sorted(lines) == sorted(expected)


def test_near_duplicates_are_found_among_what_is_no_copy(prepare: Any):
    changed = [f"{text}\nand a word more" if len(text) > 250 else text for text in LOW]
    rules = CleaningRules(drop_duplicates=True, drop_near_duplicates=0.7)
    units, prepared, lines = prepare(low=[*LOW, *changed], cleaning=rules)
    repeats = [repeat for unit in units for repeat in prepared.copies_in(unit, {0: "big.txt", 1: "low.txt"}).values()]
    num_changed = sum(old != new for old, new in zip(LOW, changed, strict=True))
    assert num_changed > 5
    assert [repeat.reason for repeat in repeats].count("near-duplicate") == num_changed
    assert [repeat.reason for repeat in repeats].count("duplicate") == len(LOW) - num_changed
    assert "and a word more" not in lines


def test_floor_that_takes_a_whole_source_is_refused_before_training(prepare: Any):
    with pytest.raises(
        ValueError, match="floor 40: leaves no train documents, source 'low' has 40 different"
    ) as caught:
        prepare(low=[*LOW, *LOW], validation_floor=40)
    assert str(caught.value).endswith("lower it, add text or cut long documents with --split-documents")


@pytest.mark.parametrize(("alpha", "weights"), [(0.0, (1, 1)), (1.0, (1, 1)), (0.3, (1, 3))])
def test_sources_share_the_sample_by_weight_and_alpha(prepare: Any, alpha: float, weights: tuple[float, float]):
    units, _, lines = prepare(weights, low=LOW, tokenizer_alpha=alpha, tokenizer_sample_bytes=4000)
    sizes = [sum(unit.size_bytes for unit in units if unit.source == name) for name in ("big", "low")]
    scores = [weight * size**alpha for weight, size in zip(weights, sizes, strict=True)]
    in_low = {line for text in LOW for line in text.split("\n")}
    share = sum(len(line.encode()) for line in lines if line in in_low) / sum(len(line.encode()) for line in lines)
    # a source's sample falls short of its share by a line at most, of 4,000 bytes
    assert share == pytest.approx(scores[1] / sum(scores), abs=0.1)
