"""build_corpus.py: every document arrives, the same bytes again from anywhere, and memory that stays flat."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.progress import Progress

from disentangled.data_prep.build_corpus import build_corpus
from disentangled.data_prep.build_options import BuildOptions
from disentangled.data_prep.shard_schema import SPLITS, Manifest, load_manifest, open_shard, sum_records
from disentangled.data_prep.task_pool import SerialPool
from disentangled.data_prep.token_storage import LARGEST_VOCAB
from disentangled.data_prep.tokenizer import Tokenizer, load_tokenizer
from tests.data_prep.tiny_corpus import (
    NUM_PIECES,
    is_validation,
    make_documents,
    read_tree,
    write_bytes,
    write_jsonl,
    write_txt,
)


def build(inputs: list[Path], output: Path, **options: Any) -> Manifest:
    chosen = {"validation_fraction": 0.2, **options}
    paths = tuple(str(path) for path in inputs)
    options_given = BuildOptions(inputs=paths, output=str(output), **chosen)
    return build_corpus(options_given, SerialPool(), Progress(disable=True))


def read_rows(directory: Path, split: str) -> list[list[int]]:
    """Return the ids of every document of a split, in order."""
    shards = [open_shard(directory, record, "full") for record in load_manifest(directory).splits[split]]
    return [row.tolist() for shard in shards for row in np.split(shard.tokens[:], shard.offsets[1:-1])]


def decode_split(directory: Path, split: str) -> list[str]:
    tokenizer = load_tokenizer(directory / "spm.model")
    return [tokenizer.processor.decode(row) for row in read_rows(directory, split)]


def expected_split(documents: list[str], tokenizer: Tokenizer, validation: bool, seed: int = 1) -> list[str]:
    """Return the normalized documents of a split in the order of the corpus."""
    chosen = [text for text in documents if is_validation(text, seed, 0.2) == validation]
    return [tokenizer.processor.decode(tokenizer.processor.encode(text)) for text in chosen]


@pytest.mark.parametrize("name", ["corpus.txt", "corpus.txt.gz", "corpus.txt.zst", "corpus.jsonl", "corpus.jsonl.zst"])
def test_every_document_arrives_in_order(tmp_path: Path, model_path: Path, tokenizer: Tokenizer, name: str):
    documents = make_documents()
    text = (write_txt if ".txt" in name else write_jsonl)(tmp_path / name, documents)
    build([text], tmp_path / "out", tokenizer=str(model_path), shard_tokens=700)
    assert decode_split(tmp_path / "out", "train") == expected_split(documents, tokenizer, validation=False)
    assert decode_split(tmp_path / "out", "validation") == expected_split(documents, tokenizer, validation=True)


def test_containers_give_the_same_rows(tmp_path: Path, model_path: Path):
    documents = make_documents()
    files = [write_txt(tmp_path / "a.txt.zst", documents), write_jsonl(tmp_path / "a.jsonl.gz", documents)]
    for file in files:
        build([file], tmp_path / file.suffix, tokenizer=str(model_path))
    for split in SPLITS:
        assert read_rows(tmp_path / ".zst", split) == read_rows(tmp_path / ".gz", split)


def test_rebuilding_gives_the_same_bytes_from_anywhere(tmp_path: Path):
    documents = make_documents(80)
    trees = []
    for place in ("here", "there"):
        files = [
            write_txt(tmp_path / place / "in" / "b.txt", documents[:40]),
            write_jsonl(tmp_path / place / "in" / "a.jsonl.zst", documents[40:]),
        ]
        inputs = files if place == "here" else [tmp_path / place / "in"]
        output = tmp_path / place / "out"
        build(inputs, output, vocab_size=NUM_PIECES, tokenizer_sample_bytes=5000, shard_tokens=700)
        trees.append(read_tree(output))
    assert trees[0] == trees[1]
    assert sum(path.endswith(".arrow") for path in trees[0]) > 4


@pytest.mark.parametrize("change", [{"seed": 2}, {"validation_fraction": 0.3}, {"shard_tokens": 800}])
def test_dataset_id_follows_the_options(tmp_path: Path, model_path: Path, change: dict[str, Any]):
    text = write_txt(tmp_path / "a.txt", make_documents())
    first = build([text], tmp_path / "first", tokenizer=str(model_path), shard_tokens=700)
    second = build([text], tmp_path / "second", **{"tokenizer": str(model_path), "shard_tokens": 700, **change})
    assert first.dataset_id != second.dataset_id


def test_token_storage_changes_how_ids_lie_there_and_not_the_ids(
    tmp_path: Path, model_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = write_txt(tmp_path / "a.txt", make_documents())
    narrow = build([text], tmp_path / "narrow", tokenizer=str(model_path))
    wide = build([text], tmp_path / "wide", tokenizer=str(model_path), token_storage="uint24")
    assert (narrow.token_storage, wide.token_storage) == ("uint16", "uint24")
    assert narrow.dataset_id != wide.dataset_id
    for split in SPLITS:
        assert read_rows(tmp_path / "narrow", split) == read_rows(tmp_path / "wide", split)
    monkeypatch.setitem(LARGEST_VOCAB, "uint16", 100)
    with pytest.raises(ValueError, match="holds vocabularies of up to 100, this one has 448: leave it out for uint24"):
        build([text], tmp_path / "never", tokenizer=str(model_path), token_storage="uint16")


def test_validation_split_does_not_depend_on_files_or_their_order(tmp_path: Path, model_path: Path):
    documents = make_documents(80)
    write_txt(tmp_path / "one" / "a.txt", documents)
    write_jsonl(tmp_path / "two" / "a.jsonl", documents[::-1][:50])
    write_txt(tmp_path / "two" / "b.txt", documents[::-1][50:])
    for name in ("one", "two"):
        build([tmp_path / name], tmp_path / f"{name}.out", tokenizer=str(model_path))
    one, two = (decode_split(tmp_path / f"{name}.out", "validation") for name in ("one", "two"))
    assert one == two[::-1]


def test_copies_of_a_document_fall_on_one_side(tmp_path: Path, model_path: Path):
    documents = make_documents()
    build([write_txt(tmp_path / "a.txt", documents * 3)], tmp_path / "out", tokenizer=str(model_path))
    train, validation = (set(decode_split(tmp_path / "out", split)) for split in SPLITS)
    assert not train & validation


def test_dataset_holds_its_own_files_and_no_other(dataset: Path):
    records = [record for split in SPLITS for record in load_manifest(dataset).splits[split]]
    expected = {"manifest.json", "spm.model", "report.md", "lengths.svg"} | {record.path for record in records}
    expected |= {str(Path(record.path).with_suffix(".json")) for record in records}
    assert set(read_tree(dataset)) == expected


def test_manifest_counts_are_those_of_the_rows(tmp_path: Path, model_path: Path):
    documents = make_documents()
    manifest = build([write_txt(tmp_path / "a.txt", documents)], tmp_path / "out", tokenizer=str(model_path))
    assert load_manifest(tmp_path / "out") == manifest
    assert manifest.totals.num_documents == len(documents)
    assert manifest.totals.text_bytes == sum(len(text.encode()) for text in documents)
    assert manifest.totals.num_byte_tokens > 0
    assert manifest.totals.unknown_rate == 0.0
    assert manifest.totals == sum_records(manifest.splits["train"] + manifest.splits["validation"])
    for split in SPLITS:
        rows = read_rows(tmp_path / "out", split)
        assert manifest.counts[split].num_documents == len(rows)
        assert manifest.counts[split].num_tokens == sum(map(len, rows))


def test_manifest_entropies_are_those_of_the_rows(dataset: Path):
    manifest = load_manifest(dataset)
    train, validation = (
        np.bincount(np.concatenate(read_rows(dataset, split)), minlength=manifest.num_pieces) for split in SPLITS
    )
    p = train[train > 0] / train.sum()
    assert manifest.training_unigram_entropy_nats == pytest.approx(float(-(p * np.log(p)).sum()), rel=1e-12)
    q = (train + 1) / (train.sum() + manifest.num_pieces)
    cross = float(-(validation / validation.sum() * np.log(q)).sum())
    assert manifest.validation_unigram_cross_entropy_nats == pytest.approx(cross, rel=1e-12)


def test_specials_spelled_in_text_are_stored_as_ordinary_pieces(tmp_path: Path, model_path: Path):
    literal = "word [MASK] [CLS][SEP] [PAD] [UNK] word"
    documents = [*make_documents(), literal]
    build([write_txt(tmp_path / "a.txt", documents)], tmp_path / "out", tokenizer=str(model_path))
    decoded = decode_split(tmp_path / "out", "train") + decode_split(tmp_path / "out", "validation")
    assert literal in decoded
    specials = {0, 1, 2, 3, load_manifest(tmp_path / "out").special_ids.mask}
    rows = read_rows(tmp_path / "out", "train") + read_rows(tmp_path / "out", "validation")
    assert not specials & {index for row in rows for index in row}


def test_tokenizer_is_not_trained_on_validation_text(tmp_path: Path):
    documents = make_documents(80)
    inputs = [write_txt(tmp_path / "a" / "a.txt", documents)]
    # other validation documents, which fall into validation too, must not change the model
    others = [text for text in make_documents(400, seed=9) if is_validation(text, 1, 0.2)]
    training = [text for text in documents if not is_validation(text, 1, 0.2)]
    build(inputs, tmp_path / "one", vocab_size=NUM_PIECES)
    build([write_txt(tmp_path / "b" / "a.txt", training + others)], tmp_path / "two", vocab_size=NUM_PIECES)
    assert (tmp_path / "one" / "spm.model").read_bytes() == (tmp_path / "two" / "spm.model").read_bytes()


def test_skipped_and_empty_documents_are_counted(tmp_path: Path, model_path: Path):
    documents = make_documents()
    good = "\n\n".join(documents).encode()
    text = write_bytes(tmp_path / "a.txt", b"\xff\n\n\xe2\x80\x8b\n\n" + good + b"\n\nbad \xfe")
    manifest = build([text], tmp_path / "out", tokenizer=str(model_path), skip_bad_text=True)
    assert (manifest.num_bad_documents, manifest.num_empty_documents) == (2, 1)
    assert manifest.totals.num_documents == len(documents)


def test_start_bytes_lead_back_to_the_text(tmp_path: Path, model_path: Path, tokenizer: Tokenizer):
    files = [
        write_txt(tmp_path / "in" / name, make_documents(30, seed)) for seed, name in enumerate(["a.txt", "b.txt"])
    ]
    build(files, tmp_path / "out", tokenizer=str(model_path), shard_tokens=700)
    for split in SPLITS:
        for record in load_manifest(tmp_path / "out").splits[split]:
            shard = open_shard(tmp_path / "out", record)
            names = [part.file for part in record.ranges for _ in range(part.num_documents)]
            for row, (name, start) in enumerate(zip(names, shard.start_bytes, strict=True)):
                text = (tmp_path / "in" / name).read_bytes()[start:].split(b"\n\n")[0].decode()
                ids = shard.tokens[shard.offsets[row] : shard.offsets[row + 1]].tolist()
                assert ids == tokenizer.processor.encode(text)


# VmHWM and not ru_maxrss, which a child process inherits from the parent that it was forked from
MEMORY_PROBE = """
import sys
from pathlib import Path
from rich.progress import Progress
from disentangled.data_prep.build_corpus import build_corpus
from disentangled.data_prep.build_options import BuildOptions
from disentangled.data_prep.task_pool import SerialPool

text, output, model = sys.argv[1:]
options = BuildOptions(inputs=(text,), output=output, tokenizer=model, shard_tokens=500_000)
build_corpus(options, SerialPool(), Progress(disable=True))
[line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(int(line.split()[1]) / 1024)
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path, model_path: Path):
    block = "\n\n".join(make_documents(10_000, seed=3))[:1_500_000]
    peaks_mib = []
    for repeats in (1, 20):
        text = write_bytes(tmp_path / f"{repeats}.txt", "\n\n".join([block] * repeats).encode())
        command = [sys.executable, "-c", MEMORY_PROBE, str(text), str(tmp_path / f"out{repeats}"), str(model_path)]
        output = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
        peaks_mib.append(float(output.stdout))
    # 28 MB more of text, 40 MB more of ids; what stays, a batch and a shard, is the same: measured growth 8 MiB
    assert load_manifest(tmp_path / "out20").totals.text_bytes > 29e6
    assert peaks_mib[1] - peaks_mib[0] < 16, peaks_mib


def test_data_prep_imports_no_torch():
    probe = "import sys, disentangled.data_prep.build_corpus, disentangled.data_prep.inspect_shard; "
    command = [sys.executable, "-c", probe + "assert 'torch' not in sys.modules"]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
