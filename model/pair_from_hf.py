"""A pair of models from published weights, which are seldom all there.

What: fills a new generator and discriminator from a discriminator's tensors and, where there is one, a generator's.
- A trunk must be whole. A head that is not there keeps its initial weights; half a head is an error.
- Both embedding tables come over row by row as `carry` says (another tokenizer has other rows); E_Delta = E_D - E_G.
- Without a generator E_G = E_D and E_Delta = 0, and the generator's layers are copies of the discriminator's first
  ones, each of which goes on to see what it was trained on (arXiv 2004.03844: of pre-trained layers the lower ones are
  most worth keeping), or random. Its MLM head and the mask decoder's positions are those left in the discriminator's
  file, if any.
- A longer position table repeats the old rows (arXiv 2004.05150 section 5 does so for RoBERTa), all but the first and
  the last: [CLS] and [SEP] stand there, which are never masked, so no decoder has learnt them. A shorter one is cut.
Every part is reported with its origin: nothing is dropped or made up in silence.
Used by: trainer/continue_from.py. Tested by tests/model/test_pair_from_hf.py.
Not here: names (model/published_names.py), files (trainer/published_files.py), tokens (trainer/vocabulary_match.py).
"""

# V vocabulary  D hidden width  P positions

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.hf_checkpoint import discriminator_from_hf, discriminator_word_embeddings, generator_from_hf
from disentangled.model.published_names import (
    DECODER_POSITIONS,
    INPUT_POSITIONS,
    MLM_HEAD,
    ORIGINAL_DELTA,
    RTD_HEAD,
    WORD_EMBEDDINGS,
    State,
    standard_names,
)

TRUNK = "deberta."
LAYER = re.compile(r"deberta\.encoder\.layer\.(\d+)\.")
KNOWN_PREFIXES = (TRUNK, RTD_HEAD, MLM_HEAD, "mask_decoder.")


@dataclass(frozen=True)
class PublishedModel:
    """The tensors of one file, and what a report calls it."""

    name: str
    state: State


@dataclass(frozen=True)
class Part:
    """One line of the report: a part of the pair, its tensors in the file, where it comes from."""

    name: str
    num_tensors: int
    origin: str


def load_published_pair(
    generator: Generator,
    discriminator: Discriminator,
    published: PublishedModel,
    published_generator: PublishedModel | None,
    carry: Callable[[Tensor, Tensor], Tensor],
    generator_init: str = "copy",
) -> list[Part]:
    """Fill both models in place.

    Args:
        generator, discriminator: new models, whose initial weights stay where nothing was published.
        carry: (a published table [V old, ...], the initial one [V, ...]) -> the table to begin with.
        generator_init: "copy" or "random" layers where no generator was published.

    Raises:
        ValueError: an incomplete or unknown trunk or head, layers or widths other than the models', two tables where
            es has one.
    """
    own, parts = _set_aside("discriminator", published)
    theirs: State | None = None
    if published_generator is not None:
        theirs, unused = _set_aside("generator", published_generator)
        parts += unused
        if WORD_EMBEDDINGS not in theirs:
            raise ValueError(f"{published_generator.name} lacks {WORD_EMBEDDINGS}: give a whole generator")
    _check_depth(own, len(discriminator.deberta.encoder.layer), "model.num_hidden_layers", published.name)
    initial_table = generator.word_embeddings.detach()
    own_table = discriminator_word_embeddings(own, theirs)
    own[WORD_EMBEDDINGS] = carry(own_table, initial_table)
    own.pop(ORIGINAL_DELTA, None)

    if theirs is None or published_generator is None:
        parts.append(Part("generator's E_G", 1, "E_G = E_D: no generator is given"))
        state, layers = _generator_from_discriminator(own, generator, generator_init)
        parts.append(layers)
        source = published
        source_state = own
    else:
        _check_depth(
            theirs, len(generator.deberta.encoder.layer), "model.generator_num_hidden_layers", published_generator.name
        )
        state = {name: tensor for name, tensor in theirs.items() if name.startswith(TRUNK)}
        state[WORD_EMBEDDINGS] = carry(theirs[WORD_EMBEDDINGS], initial_table)
        parts.append(Part("generator's E_G", 1, published_generator.name))
        parts.append(Part("generator's layers", _count(state, TRUNK) - 1, published_generator.name))
        source, source_state = published_generator, theirs
    head, part = _take_mlm_head(source_state, generator, carry, source.name)
    state |= head
    parts.append(part)
    state[DECODER_POSITIONS], part = _take_positions(source_state, generator, source.name)
    parts.append(part)
    generator.load_state_dict(generator_from_hf(state, generator.config))

    sharing = discriminator.embedding_sharing
    parts.append(_describe_table(sharing, theirs is not None, published.name))
    kept = {name: tensor for name, tensor in own.items() if name.startswith((TRUNK, RTD_HEAD))}
    trunk_tensors = sum(name.startswith(TRUNK) and "_embeddings." not in name for name in kept) + 1  # rel_embeddings
    parts.append(Part("discriminator's layers", trunk_tensors, published.name))
    if any(name.startswith(RTD_HEAD) for name in kept):
        parts.append(Part("discriminator's RTD head", _count(kept, RTD_HEAD), published.name))
    else:
        initial = discriminator.state_dict()
        kept |= {name: tensor for name, tensor in initial.items() if name.startswith(RTD_HEAD)}
        parts.append(Part("discriminator's RTD head", 0, f"initialised: {published.name} has none"))
    discriminator.load_state_dict(discriminator_from_hf(kept, state, discriminator.config, sharing))
    return sorted(parts, key=lambda part: part.name.startswith("not used"))


def grow_positions(table: Tensor, num_positions: int) -> Tensor:
    """A position table [num_positions, D] from one [P, D]: cut, or its inner rows repeated at the end."""
    missing = num_positions - table.shape[0]
    if missing <= 0:
        return table[:num_positions]
    inner = table[1:-1] if table.shape[0] > 2 else table
    return torch.cat([table, inner.repeat(-(-missing // inner.shape[0]), 1)[:missing]])


def _set_aside(model: str, published: PublishedModel) -> tuple[State, list[Part]]:
    """The tensors of our modules, and a line for those of others (a pooler, a classifier, ...)."""
    state = standard_names(published.state)
    unused = sorted(name for name in state if not name.startswith(KNOWN_PREFIXES))
    shown = ", ".join(unused[:3]) + (", ..." if len(unused) > 3 else "")
    parts = [Part(f"not used of the {model}'s", len(unused), shown)] if unused else []
    return {name: tensor for name, tensor in state.items() if name not in unused}, parts


def _check_depth(state: State, num_layers: int, key: str, name: str) -> None:
    numbers = [int(found[1]) for found in map(LAYER.match, state) if found]
    depth = max(numbers, default=-1) + 1
    if depth != num_layers:
        raise ValueError(f"{name} has {depth} layers, {key} is {num_layers}: set {key}={depth}")


def _generator_from_discriminator(own: State, generator: Generator, generator_init: str) -> tuple[State, Part]:
    """The generator's trunk where none was published."""
    names = [name for name in generator.state_dict() if name.startswith(TRUNK)]
    wanted = [name for name in names if generator_init == "copy" or not name.startswith("deberta.encoder.")]
    state = {name: tensor for name, tensor in generator.state_dict().items() if name in names}
    found = {name: own[name] for name in wanted if name in own}
    depth = len(generator.deberta.encoder.layer)
    copied = len({match[1] for match in map(LAYER.match, found) if match})
    if generator_init == "random":
        origin = "initialised (generator_init random); the embeddings' LayerNorm is the discriminator's"
    else:
        rest = f", {depth - copied} more initialised" if copied < depth else ""
        origin = f"the first {copied} of the discriminator's{rest}"
    return state | found, Part("generator's layers", len(found) - 1, origin)


def _take_mlm_head(
    source: State, generator: Generator, carry: Callable[[Tensor, Tensor], Tensor], name: str
) -> tuple[State, Part]:
    """The MLM head; its bias has a row for each token, as the tables have."""
    initial = {key: tensor for key, tensor in generator.state_dict().items() if key.startswith(MLM_HEAD)}
    found = {key: tensor for key, tensor in source.items() if key.startswith(MLM_HEAD)}
    if not found:
        return initial, Part("generator's MLM head", 0, f"initialised: {name} has none")
    bias = f"{MLM_HEAD}bias"
    if bias in found:
        found[bias] = carry(found[bias], initial[bias])
    return found, Part("generator's MLM head", len(found), name)


def _take_positions(source: State, generator: Generator, name: str) -> tuple[Tensor, Part]:
    """The mask decoder's position table [max_position_embeddings, D]."""
    part = "mask decoder's positions"
    initial = generator.state_dict()[DECODER_POSITIONS]
    table = source.get(DECODER_POSITIONS, source.get(INPUT_POSITIONS))
    if table is None:
        return initial, Part(part, 0, f"initialised: {name} has none")
    old, new = table.shape[0], initial.shape[0]
    change = "" if old == new else f", its first {new} of {old} rows" if old > new else f", {old} rows grown to {new}"
    return grow_positions(table, new), Part(part, 1, name + change)


def _describe_table(sharing: str, has_generator: bool, name: str) -> Part:
    part = "discriminator's E_D"
    if sharing == "nes":
        return Part(part, 1, f"{name}, its own table (nes)")
    if sharing == "es":
        return Part(part, 1, "E_D = E_G (es)")
    return Part(part, 1, f"{name}, E_Delta = E_D - E_G" if has_generator else f"{name}, E_Delta = 0")


def _count(state: State, prefix: str) -> int:
    return sum(name.startswith(prefix) for name in state)
