"""Trains a SentencePiece unigram model with DeBERTa's layout of special ids (see tokenizer.py).

The same lines, number of pieces and SentencePiece version give the same bytes: SentencePiece adds its statistics up
in the order of its threads, so the number of threads is a constant of the format here and not the machine's.

Training runs in a process of its own: SentencePiece does not look at Ctrl-C while it works, takes about 25 bytes of
memory for a byte of text, which it then returns, and where that is not to be had only the child dies.

Used by: prepare_text.py. Tested by: tests/data_prep/test_train_tokenizer.py.
Not here: the choice of the lines (sample_text.py).
"""

import io
import multiprocessing
import re
import signal
from dataclasses import dataclass
from multiprocessing.connection import Connection

import sentencepiece as spm

from disentangled.data_prep.tokenizer import SPECIAL_PIECES

# part of the result, see above; 16 keep a large machine busy and cost a small one nothing
NUM_TRAINING_THREADS = 16
# SentencePiece's default: the rarest 0.05 % of characters become bytes, which byte fallback can spell
CHARACTER_COVERAGE = 0.9995
NORMALIZER = "nmt_nfkc"


@dataclass(frozen=True)
class TrainingOptions:
    """What to train. Without byte fallback, characters that the coverage leaves out become [UNK]."""

    num_pieces: int
    byte_fallback: bool = True
    character_coverage: float = CHARACTER_COVERAGE


def train_model(lines: list[str], options: TrainingOptions) -> bytes:
    """Return the content of an spm.model with exactly options.num_pieces pieces, trained on lines.

    Raises ValueError, naming the nearest number of pieces that works, where the text allows no such model.
    """
    pad, cls, sep, unk = SPECIAL_PIECES
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type="unigram",
            vocab_size=options.num_pieces,
            pad_id=0,
            bos_id=1,
            eos_id=2,
            unk_id=3,
            pad_piece=pad,
            bos_piece=cls,
            eos_piece=sep,
            unk_piece=unk,
            byte_fallback=options.byte_fallback,
            character_coverage=options.character_coverage,
            normalization_rule_name=NORMALIZER,
            num_threads=NUM_TRAINING_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise ValueError(_explain_failure(str(error), options.num_pieces)) from None
    return model.getvalue()


def train_model_in_child(lines: list[str], options: TrainingOptions) -> bytes:
    """Do what train_model does, in another process that ends with this call, however it ends."""
    context = multiprocessing.get_context("spawn")
    connection, remote = context.Pipe()
    child = context.Process(target=_train_for_parent, args=(remote, options), daemon=True)
    try:
        # the child inherits the mask: Ctrl-C in the terminal reaches both, and only this process answers
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        child.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        remote.close()
        connection.send(lines)
        outcome = connection.recv()
    except (EOFError, ConnectionError):
        child.join()
        fault = f"training the tokenizer ended with exit code {child.exitcode}, most likely for want of memory"
        raise ChildProcessError(f"{fault}: lower --tokenizer-sample-bytes") from None
    finally:
        if child.pid is not None:
            child.kill()
            child.join()
    if isinstance(outcome, ValueError):
        raise outcome
    assert isinstance(outcome, bytes)
    return outcome


def _train_for_parent(connection: Connection, options: TrainingOptions) -> None:
    """Body of the child: receive the lines, send the model or the ValueError."""
    try:
        outcome: bytes | ValueError = train_model(connection.recv(), options)
    except ValueError as error:
        outcome = error
    connection.send(outcome)


def _explain_failure(reason: str, num_pieces: int) -> str:
    """Return one line for the trainer's error."""
    if match := re.search(r"too high \(\d+\)\. Please set it to a value <= (\d+)", reason):
        remedy = f"use --vocab-size {match[1]}, the largest that works, or more text"
        return f"--vocab-size {num_pieces} is more than this text allows: {remedy}"
    if match := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
        rule = "is less than the characters of this text need"
        return f"--vocab-size {num_pieces} {rule}: use --vocab-size {match[1]} or more"
    if "!sentences_.empty()" in reason:
        return "the inputs hold no text to train a tokenizer on: check --input and --text-field"
    return f"SentencePiece could not train a tokenizer ({' '.join(reason.split())}): check --input and --vocab-size"
