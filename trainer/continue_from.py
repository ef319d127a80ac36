"""A new run that begins with weights of an earlier one, ours or published: `continue_from.checkpoint=DIR`.

What: reads the checkpoint, checks its config.json against the recipe, brings its tokenizer's rows to the shards'
tokens, fills both models, and says part by part what was found, missing and initialised. Every rank does the same with
the same files. Optimizer, schedule, step count and data order are the new run's own: step 0, the order of its run.seed
from its beginning. RUN/continue_from.json records what was read; a resumed run does not read it again.
Used by: trainer/assemble.py. Tested by tests/trainer/test_continue_from.py and tests/integration/test_continue.py.
Not here: files (published_files.py), tokens (vocabulary_match.py), tensors (model/pair_from_hf.py), the steps in which
the generator trains alone (rtd_step.py).
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from disentangled.model.config import DebertaConfig
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.pair_from_hf import Part, load_published_pair
from disentangled.trainer.dataset import Dataset, tokenizer_path
from disentangled.trainer.published_files import Published, open_published
from disentangled.trainer.run_config import RunConfig
from disentangled.trainer.vocabulary_match import VocabularyMatch, match_vocabularies, read_tokenizer, same_vocabulary

RECORD_FILE = "continue_from.json"
SHARDS_TOKENIZER = "shards"  # continue_from.tokenizer: the checkpoint's ids are the shards'
MOST_PADDING_ROWS = 1024  # past the last id: DeBERTaV3 has 99, mDeBERTaV3 898
# keys of an architecture that a continued run may set anew: sizes of tables that are brought over row by row, what only
# training reads
FREE_KEYS = (
    "vocab_size",
    "max_position_embeddings",
    "max_relative_positions",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "pad_token_id",
)


@dataclass(frozen=True)
class ContinueReport:
    """What was read, for the console and for RUN/continue_from.json."""

    checkpoint: str
    kind: str
    hashes: dict[str, str]
    parts: list[Part]
    vocabulary: str
    notes: list[str]

    def lines(self) -> list[str]:
        """The table: a line for each part, its tensors found in the files, where it comes from."""
        width = max(len(part.name) for part in self.parts)
        return [
            f"continuing from {self.checkpoint} ({self.kind})",
            f"  {'part':<{width}}  found  from",
            *(f"  {part.name:<{width}}  {part.num_tensors:>5}  {part.origin}" for part in self.parts),
            f"  vocabulary: {self.vocabulary}",
            *(f"  {note}" for note in self.notes),
        ]

    def write(self, run_dir: Path) -> None:
        """Record it beside run.json."""
        (run_dir / RECORD_FILE).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def load_continued(
    generator: Generator, discriminator: Discriminator, config: RunConfig, dataset: Dataset
) -> ContinueReport:
    """Fill both new models from continue_from.checkpoint.

    Raises:
        ValueError: the checkpoint is unclear, damaged, of another architecture, or not the one that this run, which
            was stopped before it saved anything, began with; one line.
    """
    section = config.continue_from
    checkpoint = Path(section.checkpoint)
    published = open_published(checkpoint, Path(section.generator) if section.generator else None)
    check_same_start(Path(config.run.dir), published)
    check_architecture(published, generator.config, discriminator.config)
    match = match_tokens(published, section.tokenizer, dataset, generator.config.vocab_size)
    parts = load_published_pair(
        generator, discriminator, published.discriminator, published.generator, match.carry, section.generator_init
    )
    notes = [
        *describe_missing_config(published),
        *describe_generator(published, section.generator_warmup_steps),
        *describe_positions(published, discriminator.config),
        describe_order(published, config, dataset),
    ]
    return ContinueReport(section.checkpoint, published.kind, published.hashes, parts, match.describe(), notes)


def check_same_start(run_dir: Path, published: Published) -> None:
    """Refuse other weights for a run that was stopped before its first checkpoint: it starts again with the same."""
    record = run_dir / RECORD_FILE
    if record.is_file() and json.loads(record.read_text(encoding="utf-8"))["hashes"] != published.hashes:
        raise ValueError(
            f"run.dir {run_dir} began with other weights than continue_from.checkpoint holds now (see {record}): give "
            "those or another run.dir"
        )


def check_architecture(published: Published, generator: DebertaConfig, discriminator: DebertaConfig) -> None:
    """Refuse a checkpoint whose config.json says otherwise than the recipe.

    Raises:
        ValueError: names the key and both values.
    """
    for model, ours in (("discriminator", discriminator), ("generator", generator)):
        if model not in published.configs:
            continue
        theirs = published.configs[model]
        for entry in fields(DebertaConfig):
            key = entry.name
            old, new = comparable(theirs, key), comparable(ours, key)
            if key not in FREE_KEYS and old != new:
                name = "generator_num_hidden_layers" if (model, key) == ("generator", "num_hidden_layers") else key
                raise ValueError(
                    f"the checkpoint's {model} has {key} {getattr(theirs, key)!r} in its config, the recipe's "
                    f"model.{name} is {getattr(ours, key)!r}: set model.{name}={getattr(theirs, key)} or choose "
                    "another checkpoint"
                )
        if theirs.relative_span != ours.relative_span and ours.max_relative_positions < 1:
            raise ValueError(
                f"the checkpoint's {model} has relative distances up to {theirs.relative_span}, the recipe's up to "
                f"{ours.relative_span} (model.max_position_embeddings): set model.max_relative_positions="
                f"{theirs.relative_span} to keep what each bucket means, or ={ours.relative_span} to stretch them"
            )


def comparable(config: DebertaConfig, key: str) -> Any:
    """A value as it decides what is computed."""
    value = getattr(config, key)
    if key == "pos_att_type":
        return sorted(value)
    if key == "position_buckets":
        return max(0, value)
    if key in ("conv_act", "conv_groups") and not config.conv_kernel_size:
        return None
    return value


def match_tokens(published: Published, tokenizer: str, dataset: Dataset, vocab_size: int) -> VocabularyMatch:
    """How the checkpoint's rows become the shards' tokens.

    Raises:
        ValueError: no tokenizer beside the checkpoint or in continue_from.tokenizer, or not the checkpoint's.
    """
    num_tokens = dataset.manifest.num_pieces + 1
    models = [model for model in (published.discriminator, published.generator) if model is not None]
    num_rows = {tensor.shape[0] for model in models for name, tensor in model.state.items() if "word_emb" in name}
    if len(num_rows) != 1:
        raise ValueError(f"the checkpoint's embedding tables have {sorted(num_rows)} rows: give one pair's files")
    path = Path(tokenizer) if tokenizer else published.tokenizer
    if tokenizer == SHARDS_TOKENIZER:
        path = tokenizer_path(dataset)
    if path is None:
        raise ValueError(
            "no spm.model lies beside the checkpoint, so nobody knows which of its ids are the shards': give "
            "continue_from.tokenizer=FILE, or =shards where the shards were made with its tokenizer"
        )
    old, new = read_tokenizer(path), read_tokenizer(tokenizer_path(dataset))
    rows, ids = num_rows.pop(), len(old.pieces) + 1
    if not ids <= rows < ids + MOST_PADDING_ROWS:
        raise ValueError(
            f"the checkpoint's embeddings have {rows} rows, the tokenizer {path} {ids} ids: give the checkpoint's own "
            "with continue_from.tokenizer=FILE"
        )
    if old.pieces == new.pieces:
        return same_vocabulary(num_tokens, min(rows, vocab_size))
    return match_vocabularies(new, old)


def describe_missing_config(published: Published) -> list[str]:
    """What had to be taken on trust."""
    if "discriminator" in published.configs:
        return []
    return ["no config.json: heads, buckets and activation are the recipe's; only shapes could be checked"]


def describe_generator(published: Published, warmup_steps: int) -> list[str]:
    """When the discriminator starts to move."""
    if warmup_steps:
        return [f"the generator trains alone for {warmup_steps:,} steps"]
    if published.generator is None:
        return ["no generator and continue_from.generator_warmup_steps is 0: an untrained one feeds the discriminator"]
    return []


def describe_positions(published: Published, ours: DebertaConfig) -> list[str]:
    """Whether the buckets of relative distances mean something else now."""
    theirs = published.configs.get("discriminator")
    if theirs is None or theirs.relative_span == ours.relative_span:
        return []
    return [f"buckets of distances ended at {theirs.relative_span}, now at {ours.relative_span}: their meaning changes"]


def describe_order(published: Published, config: RunConfig, dataset: Dataset) -> str:
    """Where in the data the run begins."""
    line = f"data: from the beginning, in the order of run.seed {config.run.seed}; optimizer and schedule are new"
    if published.order == (dataset.manifest.dataset_id, config.run.seed, config.data.sequence_length):
        line += "; warning: the earlier run had this very order: give another run.seed"
    return line
