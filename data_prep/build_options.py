"""The options of build_corpus: what they are, their limits, and how the command line spells them.

Used by: build_corpus.py. Tested by: tests/data_prep/test_build_corpus_command.py.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field

from disentangled.data_prep.clean import DEFAULT_SIMILARITY, FORMS, CleaningRules
from disentangled.data_prep.command_line import OneLineParser
from disentangled.data_prep.find_inputs import KNOWN_NAMES
from disentangled.data_prep.token_storage import COLUMNS, TokenStorage
from disentangled.data_prep.train_tokenizer import CHARACTER_COVERAGE, TrainingOptions

# 32 Mi tokens: a shard of 64 MiB, which is also what a split keeps in memory
DEFAULT_SHARD_TOKENS = 1 << 25
# Arrow's list offsets are int32; 2**27 stays far away from them and a shard below 512 MiB
MAX_SHARD_TOKENS = 1 << 27
# 2: hardly any text has fewer bytes a token, so the shard of a range does not run over. 64 MiB by default
RANGE_BYTES_PER_TOKEN = 2
# 32 MiB of text: training 32,000 pieces then takes about 0.8 GB and 20 s on two cores
DEFAULT_SAMPLE_BYTES = 1 << 25
# arXiv 1911.02116 section 3.1
DEFAULT_ALPHA = 0.3


@dataclass(frozen=True)
class BuildOptions:
    """What to build; ValueError when options contradict each other or lie out of range.

    Either inputs or sources (the path of a TOML file), and either tokenizer (the path of an spm.model) or vocab_size
    (pieces to train) is given.
    """

    output: str
    inputs: tuple[str, ...] = ()
    sources: str | None = None
    tokenizer: str | None = None
    vocab_size: int | None = None
    validation_fraction: float = 0.05
    validation_floor: int = 0
    seed: int = 1
    text_field: str = "text"
    skip_bad_text: bool = False
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    token_storage: TokenStorage | None = None
    tokenizer_sample_bytes: int = DEFAULT_SAMPLE_BYTES
    tokenizer_alpha: float = DEFAULT_ALPHA
    byte_fallback: bool = True
    character_coverage: float = CHARACTER_COVERAGE
    cleaning: CleaningRules = field(default_factory=CleaningRules)

    def __post_init__(self) -> None:
        if (self.sources is None) == (not self.inputs):
            raise ValueError("inputs: are either given or listed in a file: name --input or --sources")
        if (self.tokenizer is None) == (self.vocab_size is None):
            raise ValueError("a tokenizer: is either given or trained: name --tokenizer or --vocab-size")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"--vocab-size {self.vocab_size}: must be at least 1: 8000 suits a small corpus")
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(f"--validation-fraction {self.validation_fraction}: must lie between 0 and 1: try 0.05")
        if self.validation_floor < 0:
            raise ValueError(f"--validation-floor {self.validation_floor}: must not be negative: 0 is no floor")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"--seed {self.seed}: must lie between 0 and 2**64 - 1: try 1")
        if not 1 <= self.shard_tokens <= MAX_SHARD_TOKENS:
            limits = f"must lie between 1 and {MAX_SHARD_TOKENS}"
            raise ValueError(f"--shard-tokens {self.shard_tokens}: {limits}: leave it out for {DEFAULT_SHARD_TOKENS}")
        if self.tokenizer_sample_bytes < 1:
            rule = f"must be at least 1: leave it out for {DEFAULT_SAMPLE_BYTES}"
            raise ValueError(f"--tokenizer-sample-bytes {self.tokenizer_sample_bytes}: {rule}")
        if not 0.0 <= self.tokenizer_alpha <= 1.0:
            limits = "must lie between 0 (every source alike) and 1 (as the text is)"
            raise ValueError(f"--tokenizer-alpha {self.tokenizer_alpha}: {limits}: try {DEFAULT_ALPHA}")
        # SentencePiece's own limits
        if not 0.98 <= self.character_coverage <= 1.0:
            limits = f"must lie between 0.98 and 1: leave it out for {CHARACTER_COVERAGE}"
            raise ValueError(f"--character-coverage {self.character_coverage}: {limits}")

    @property
    def range_bytes(self) -> int:
        """Bytes of plain text in a unit of work."""
        return self.shard_tokens * RANGE_BYTES_PER_TOKEN

    @property
    def training(self) -> TrainingOptions:
        """What to train, where a tokenizer is trained."""
        assert self.vocab_size is not None
        return TrainingOptions(self.vocab_size, self.byte_fallback, self.character_coverage)


def parse_options(arguments: Sequence[str] | None) -> BuildOptions:
    """Return the options of a command line, the process's own for None; a line of error and exit 2 for a wrong one."""
    parser = OneLineParser(prog="build_corpus", description="Turn text into a dataset of tokenized Arrow shards.")
    _add_inputs(parser)
    _add_tokenizer(parser)
    _add_cleaning(parser)
    parsed = vars(parser.parse_args(arguments))
    if parsed.pop("train_tokenizer") == (parsed["vocab_size"] is None):
        parser.error("--train-tokenizer and --vocab-size go together")
    cleaning = {name: parsed.pop(name) for name in CleaningRules.__dataclass_fields__}
    return BuildOptions(
        inputs=tuple(parsed.pop("input") or ()),
        skip_bad_text=parsed.pop("on_bad_text") == "skip",
        cleaning=CleaningRules(**cleaning),
        **parsed,
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add what is read and where it goes."""
    inputs = parser.add_mutually_exclusive_group(required=True)
    inputs.add_argument("--input", nargs="+", metavar="PATH", help=f"{KNOWN_NAMES}; or folders, globs or URLs of these")
    inputs.add_argument(
        "--sources", metavar="TOML", help="a file of named inputs with weights, see docs/data_format.md"
    )
    add = parser.add_argument
    add("--output", required=True, metavar="DIR", help="a new or empty folder, or an unfinished build to go on with")
    add("--validation-fraction", type=float, default=0.05, metavar="F", help="share of the documents (%(default)s)")
    floor = "different validation documents in every source, at least (%(default)s)"
    add("--validation-floor", type=int, default=0, metavar="N", help=floor)
    add("--seed", type=int, default=1, metavar="N", help="of the split and of the tokenizer's sample (%(default)s)")
    add("--text-field", default="text", metavar="NAME", help="the text's name in .jsonl rows and tables (%(default)s)")
    faults = "a document that is not UTF-8, or a row that is not JSON or has no text (%(default)s)"
    add("--on-bad-text", choices=("fail", "skip"), default="fail", help=faults)
    most = "tokens in a shard, at most; a unit of work is twice as many bytes (%(default)s)"
    add("--shard-tokens", type=int, default=DEFAULT_SHARD_TOKENS, metavar="N", help=most)
    storage = "how ids are stored (the narrowest that holds the vocabulary; uint32 reads a little faster than uint24)"
    add("--token-storage", choices=tuple(COLUMNS), help=storage)


def _add_tokenizer(parser: argparse.ArgumentParser) -> None:
    """Add what is said about the tokenizer."""
    tokenizer = parser.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--tokenizer", metavar="SPM_MODEL", help="a SentencePiece model in DeBERTa's layout")
    tokenizer.add_argument("--train-tokenizer", action="store_true", help="train one on the training split")
    add = parser.add_argument
    add("--vocab-size", type=int, metavar="N", help="number of pieces, with --train-tokenizer")
    sample = "text to train the tokenizer on, at most (%(default)s)"
    add("--tokenizer-sample-bytes", type=int, default=DEFAULT_SAMPLE_BYTES, metavar="N", help=sample)
    alpha = "a source's share of that is weight * size ** F: 0 all alike, 1 as the text is (%(default)s)"
    add("--tokenizer-alpha", type=float, default=DEFAULT_ALPHA, metavar="F", help=alpha)
    fallback = "spell characters that have no piece as bytes, else as [UNK] (yes)"
    add("--byte-fallback", action=argparse.BooleanOptionalAction, default=True, help=fallback)
    coverage = "share of the characters that get a piece (%(default)s)"
    add("--character-coverage", type=float, default=CHARACTER_COVERAGE, metavar="F", help=coverage)


def _add_cleaning(parser: argparse.ArgumentParser) -> None:
    """Add the rules of cleaning, all of them off."""
    add = parser.add_argument
    cut = "cut longer documents at line ends into several of at most N characters"
    add("--split-documents", type=int, default=0, metavar="N", help=cut)
    add("--normalize", choices=FORMS, default="none", help="Unicode form of the text (%(default)s)")
    add("--strip-controls", action="store_true", help="turn control characters into spaces")
    add("--min-characters", type=int, default=0, metavar="N", help="leave out shorter documents")
    add("--max-characters", type=int, default=0, metavar="N", help="leave out longer documents")
    add("--min-letters", type=float, default=0.0, metavar="F", help="leave out documents of a smaller share of letters")
    add("--max-digits", type=float, default=1.0, metavar="F", help="leave out documents of a larger share of digits")
    lines = "leave out documents of a larger share of repeated lines"
    add("--max-repeated-lines", type=float, default=1.0, metavar="F", help=lines)
    run = "leave out documents with a longer run of one character"
    add("--max-run", type=int, default=0, metavar="N", help=run)
    add("--drop-duplicates", action="store_true", help="leave out exact copies of earlier documents, of any source")
    near = f"leave out documents this similar to earlier ones, of any source ({DEFAULT_SIMILARITY} if none is named)"
    add("--drop-near-duplicates", type=float, nargs="?", const=DEFAULT_SIMILARITY, default=0.0, metavar="F", help=near)
