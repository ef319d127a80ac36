"""The options of build_corpus: what they are, their limits, and how the command line spells them.

Used by: build_corpus.py. Tested by: tests/data_prep/test_build_corpus_command.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from disentangled.data_prep.command_line import OneLineParser

# 32 Mi tokens: a shard of 64 MiB, which is also what a split keeps in memory
DEFAULT_SHARD_TOKENS = 1 << 25
# Arrow's list offsets are int32; 2**27 stays far away from them and a shard below 512 MiB
MAX_SHARD_TOKENS = 1 << 27
# 32 MiB of text: training 32,000 pieces then takes about 0.8 GB and 20 s on two cores
DEFAULT_SAMPLE_BYTES = 1 << 25


@dataclass(frozen=True)
class BuildOptions:
    """What to build; ValueError when options contradict each other or lie out of range.

    Either tokenizer (the path of an spm.model) or vocab_size (pieces to train) is given.
    """

    inputs: tuple[str, ...]
    output: str
    tokenizer: str | None = None
    vocab_size: int | None = None
    validation_fraction: float = 0.05
    seed: int = 1
    text_field: str = "text"
    skip_bad_text: bool = False
    shard_tokens: int = DEFAULT_SHARD_TOKENS
    tokenizer_sample_bytes: int = DEFAULT_SAMPLE_BYTES

    def __post_init__(self) -> None:
        if (self.tokenizer is None) == (self.vocab_size is None):
            raise ValueError("a tokenizer: is either given or trained: name --tokenizer or --vocab-size")
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ValueError(f"--vocab-size {self.vocab_size}: must be at least 1: 8000 suits a small corpus")
        if not 0.0 < self.validation_fraction < 1.0:
            raise ValueError(f"--validation-fraction {self.validation_fraction}: must lie between 0 and 1: try 0.05")
        if not 0 <= self.seed < 1 << 64:
            raise ValueError(f"--seed {self.seed}: must lie between 0 and 2**64 - 1: try 1")
        if not 1 <= self.shard_tokens <= MAX_SHARD_TOKENS:
            limits = f"must lie between 1 and {MAX_SHARD_TOKENS}"
            raise ValueError(f"--shard-tokens {self.shard_tokens}: {limits}: leave it out for {DEFAULT_SHARD_TOKENS}")
        if self.tokenizer_sample_bytes < 1:
            rule = f"must be at least 1: leave it out for {DEFAULT_SAMPLE_BYTES}"
            raise ValueError(f"--tokenizer-sample-bytes {self.tokenizer_sample_bytes}: {rule}")


def parse_options(arguments: Sequence[str] | None) -> BuildOptions:
    """Return the options of a command line, the process's own for None; a line of error and exit 2 for a wrong one."""
    parser = OneLineParser(prog="build_corpus", description="Turn text into a dataset of tokenized Arrow shards.")
    add = parser.add_argument
    kinds = ".txt (documents between blank lines) or .jsonl files, also .gz and .zst, or folders of these"
    add("--input", nargs="+", required=True, metavar="PATH", help=kinds)
    add("--output", required=True, metavar="DIR", help="a new or empty folder")
    tokenizer = parser.add_mutually_exclusive_group(required=True)
    tokenizer.add_argument("--tokenizer", metavar="SPM_MODEL", help="a SentencePiece model in DeBERTa's layout")
    tokenizer.add_argument("--train-tokenizer", action="store_true", help="train one on the training split")
    add("--vocab-size", type=int, metavar="N", help="number of pieces, with --train-tokenizer")
    add("--validation-fraction", type=float, default=0.05, metavar="F", help="share of the documents (%(default)s)")
    add("--seed", type=int, default=1, metavar="N", help="of the split and of the tokenizer's sample (%(default)s)")
    add("--text-field", default="text", metavar="NAME", help="the text's name in .jsonl rows (%(default)s)")
    faults = "a document that is not UTF-8, or a row that is not JSON or has no text (%(default)s)"
    add("--on-bad-text", choices=("fail", "skip"), default="fail", help=faults)
    most = "tokens in a shard, at most (%(default)s)"
    add("--shard-tokens", type=int, default=DEFAULT_SHARD_TOKENS, metavar="N", help=most)
    sample = "text to train the tokenizer on, at most (%(default)s)"
    add("--tokenizer-sample-bytes", type=int, default=DEFAULT_SAMPLE_BYTES, metavar="N", help=sample)
    parsed = parser.parse_args(arguments)
    if parsed.train_tokenizer == (parsed.vocab_size is None):
        parser.error("--train-tokenizer and --vocab-size go together")
    return BuildOptions(
        inputs=tuple(parsed.input),
        output=parsed.output,
        tokenizer=parsed.tokenizer,
        vocab_size=parsed.vocab_size,
        validation_fraction=parsed.validation_fraction,
        seed=parsed.seed,
        text_field=parsed.text_field,
        skip_bad_text=parsed.on_bad_text == "skip",
        shard_tokens=parsed.shard_tokens,
        tokenizer_sample_bytes=parsed.tokenizer_sample_bytes,
    )
