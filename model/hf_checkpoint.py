"""State dicts and configs to Hugging Face's DebertaV2 and back.

What: our modules already carry Hugging Face's names, so what remains is the embedding table. A GDES discriminator is
exported with E_D = E_G + E_Delta under the one name that transformers reads: a file that keeps E_Delta under a name of
its own loads with random embeddings. On the way back E_Delta = E_D - E_G, not zero: otherwise the discriminator would
go on with the generator's embeddings instead of its own (arXiv 2111.09543 section 3.3). Accepted besides our own files:
those of transformers and of the original code (names: model/published_names.py; `_weight`, position tables: here).
A config is the content of config.json: `DebertaV2Config(**config_to_hf(...))`, `config_from_hf(hf_config.to_dict())`.
Used by: trainer/export.py, model/pair_from_hf.py. Tested by tests/model/test_hf_checkpoint.py.
Not here: files (trainer/export.py, trainer/published_files.py), tokenizers (trainer/hf_tokenizer.py), what to do about
parts that a file lacks (model/pair_from_hf.py).
"""

# V vocabulary  D hidden width

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor, nn

from disentangled.model.config import DebertaConfig
from disentangled.model.discriminator import TABLE_OF_SHARING
from disentangled.model.generator import Trunk
from disentangled.model.mask_decoder import MaskDecoder
from disentangled.model.mlm_head import MaskedLanguageHead
from disentangled.model.published_names import (
    DECODER_POSITIONS,
    DELTA,
    INPUT_POSITIONS,
    ORIGINAL_DELTA,
    WORD_EMBEDDINGS,
    State,
    standard_names,
)
from disentangled.model.rtd_head import ReplacedTokenHead

# in published files, of no use to a model without absolute positions as input
UNUSED_EMBEDDINGS = ("deberta.embeddings.position_embeddings.", "deberta.embeddings.position_ids")

# ||E_D - (E_G + E_Delta)|| / ||E_D|| of one pair is one update: about the learning rate, 1e-4 to 6e-4, a value, where
# values start at 0.02 and grow; tables of two trainings differ by about 1
LARGEST_SUM_ERROR = 0.1

# what transformers takes a key of config.json to be that is left out, where DebertaConfig's default is another
HF_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1536,
    "num_hidden_layers": 24,
    "num_attention_heads": 24,
    "intermediate_size": 6144,
    "position_buckets": -1,
    "pos_att_type": (),
    "share_att_key": False,
    "norm_rel_ebd": "none",
    "position_biased_input": True,
}


def config_to_hf(config: DebertaConfig, *, cls_token_id: int, sep_token_id: int) -> dict[str, Any]:
    """The content of config.json: every key that transformers' modeling reads, none left to a default."""
    return {
        "model_type": "deberta-v2",
        "architectures": ["DebertaV2Model"],
        **asdict(config),
        "pos_att_type": list(config.pos_att_type),
        "relative_attention": True,
        "type_vocab_size": 0,
        "legacy": False,  # the MLM head under its names in these files, lm_predictions.lm_head
        "tie_word_embeddings": False,  # that head takes E_G as an argument; transformers 4 would tie its dense layer
        "pooler_hidden_size": config.hidden_size,
        "pooler_hidden_act": "gelu",
        "pooler_dropout": 0.0,
        "bos_token_id": cls_token_id,
        "eos_token_id": sep_token_id,
    }


def config_from_hf(values: Mapping[str, Any]) -> DebertaConfig:
    """The config of a DebertaV2 config.json.

    Raises:
        ValueError: an architecture that this model does not have, named by its key.
    """
    values = {**HF_DEFAULTS, **values}
    width = values["hidden_size"]
    required = {
        "model_type": "deberta-v2",
        "relative_attention": True,
        "type_vocab_size": 0,
        "embedding_size": width,
        "attention_head_size": width // values["num_attention_heads"],
    }
    for key, needed in required.items():
        found = values.get(key, False if key == "relative_attention" else needed)
        if found != needed:
            raise ValueError(
                f"config.json: {key} is {found!r}: this model has {needed!r} only; choose another checkpoint"
            )
    terms = values["pos_att_type"] or ()
    values["pos_att_type"] = tuple(terms.lower().split("|") if isinstance(terms, str) else terms)
    values["norm_rel_ebd"] = values["norm_rel_ebd"].lower()
    return DebertaConfig(**{entry.name: values[entry.name] for entry in fields(DebertaConfig) if entry.name in values})


def discriminator_to_hf(
    generator_state: Mapping[str, Tensor], discriminator_state: Mapping[str, Tensor], sharing: str
) -> State:
    """A discriminator with its whole table E_D, fp32 at least; the RTD head stays under `mask_predictions`.

    Args:
        sharing: `model.embedding_sharing` of the run: gdes (E_D = E_G + E_Delta), es (E_D = E_G) or nes.
    """
    state = {name: _widen(tensor) for name, tensor in discriminator_state.items()}
    if sharing == "gdes":
        state[WORD_EMBEDDINGS] = _widen(generator_state[WORD_EMBEDDINGS]) + state.pop(DELTA)
    elif sharing == "es":
        state[WORD_EMBEDDINGS] = _widen(generator_state[WORD_EMBEDDINGS])
    assert WORD_EMBEDDINGS in state and DELTA not in state, f"no discriminator of sharing {sharing}"
    return state


def generator_to_hf(generator_state: Mapping[str, Tensor]) -> State:
    """A generator, fp32 at least: trunk, `lm_predictions.lm_head` and `mask_decoder` under their own names."""
    return {name: _widen(tensor) for name, tensor in generator_state.items()}


def discriminator_from_hf(
    hf_state: Mapping[str, Tensor], generator_state: Mapping[str, Tensor] | None, config: DebertaConfig, sharing: str
) -> State:
    """The state dict of a `Discriminator(config, sharing)` from a file's tensors.

    Args:
        generator_state: the generator that it is to be trained with. Where only the discriminator was published, give
            the generator E_G = `discriminator_word_embeddings(hf_state, None)` first. None for nes.

    Raises:
        ValueError: keys missing, unknown or of another shape; no generator where E_D needs one; for es an E_D that is
            not the generator's.
    """
    state = standard_names(hf_state)
    own = discriminator_word_embeddings(state, generator_state)
    state = {
        name: tensor
        for name, tensor in state.items()
        if not name.startswith(("lm_predictions.", *UNUSED_EMBEDDINGS))
        and name not in (WORD_EMBEDDINGS, ORIGINAL_DELTA)
    }
    if sharing == "nes":
        state[WORD_EMBEDDINGS] = own
    else:
        if generator_state is None:
            raise ValueError(
                f"embedding sharing {sharing} needs the generator's embeddings: give its state too, or use nes"
            )
        shared = _widen(generator_state[WORD_EMBEDDINGS])
        _check_same_table(own, shared)
        if sharing == "gdes":
            state[DELTA] = _widen(own) - shared
        elif not torch.equal(_widen(own), shared):
            raise ValueError("embedding sharing es has one table, but these two checkpoints have two: use gdes or nes")
    parts = {"deberta": Trunk, "mask_predictions": ReplacedTokenHead}
    _check_names(state, _expected_shapes(config, parts, TABLE_OF_SHARING[sharing]), "the discriminator's checkpoint")
    return state


def generator_from_hf(hf_state: Mapping[str, Tensor], config: DebertaConfig) -> State:
    """The state dict of a `Generator(config, ...)` from a file's tensors.

    The original code keeps the mask decoder's position table among the embeddings.

    Raises:
        ValueError: keys missing, unknown or of another shape.
    """
    state = {
        name: tensor for name, tensor in standard_names(hf_state).items() if not name.startswith("mask_predictions.")
    }
    positions = state.get(DECODER_POSITIONS, state.get(INPUT_POSITIONS))
    state = {name: tensor for name, tensor in state.items() if not name.startswith(UNUSED_EMBEDDINGS)}
    if positions is not None:
        state[DECODER_POSITIONS] = positions
    parts = {"deberta": Trunk, "mask_decoder": MaskDecoder, "lm_predictions.lm_head": MaskedLanguageHead}
    _check_names(state, _expected_shapes(config, parts, "own"), "the generator's checkpoint")
    return state


def discriminator_word_embeddings(
    hf_state: Mapping[str, Tensor], generator_state: Mapping[str, Tensor] | None
) -> Tensor:
    """E_D [V, D] of a discriminator's file.

    The original code's files hold E_Delta as `_weight`, and with it or without it the sum under the usual name. Where
    both are there the sum counts: transformers loads it, and it does not depend on which generator is given. It was
    taken before E_Delta's last update, so it differs from E_G + E_Delta a little.

    Raises:
        ValueError: no table, E_Delta alone and no generator to add it to, or a sum that is not this generator's.
    """
    state = standard_names(hf_state)
    if WORD_EMBEDDINGS in state:
        whole = _widen(state[WORD_EMBEDDINGS])
        if ORIGINAL_DELTA in state and generator_state is not None:
            distance = _relative_distance(whole, _add_delta(generator_state, state[ORIGINAL_DELTA]))
            if distance > LARGEST_SUM_ERROR:
                raise ValueError(
                    f"the discriminator's checkpoint holds E_D ({WORD_EMBEDDINGS}) and E_Delta ({ORIGINAL_DELTA}), but "
                    f"E_D is not the given generator's E_G + E_Delta (they differ by {distance:.0%} of E_D): give the "
                    "generator of the same step, or remove the one of the two that is wrong"
                )
        return whole
    if ORIGINAL_DELTA not in state:
        raise ValueError(f"the discriminator's checkpoint lacks {WORD_EMBEDDINGS}: give a whole checkpoint")
    if generator_state is None:
        raise ValueError(
            f"the discriminator's checkpoint holds only what it adds to the generator's embeddings ({ORIGINAL_DELTA}): "
            "give the generator's state too"
        )
    return _add_delta(generator_state, state[ORIGINAL_DELTA])


def _add_delta(generator_state: Mapping[str, Tensor], delta: Tensor) -> Tensor:
    shared = _widen(generator_state[WORD_EMBEDDINGS])
    _check_same_table(delta, shared)
    return shared + _widen(delta)


def _check_same_table(own: Tensor, shared: Tensor) -> None:
    if shared.shape != own.shape:
        raise ValueError(
            f"{WORD_EMBEDDINGS} is {tuple(own.shape)} in the discriminator and {tuple(shared.shape)} in the "
            "generator: give two checkpoints of one vocabulary and width"
        )


def _relative_distance(table: Tensor, other: Tensor) -> float:
    return float(torch.linalg.vector_norm(table - other) / torch.linalg.vector_norm(table))


def _widen(tensor: Tensor) -> Tensor:
    """The tensor in fp32 at least, where E_G + E_Delta loses nothing that training had."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _expected_shapes(config: DebertaConfig, parts: Mapping[str, type[nn.Module]], table: str) -> dict[str, torch.Size]:
    """Name and shape of every tensor of a model, without its memory."""
    with torch.device("meta"):
        modules = {name: Trunk(config, table) if kind is Trunk else kind(config) for name, kind in parts.items()}
    return {
        f"{prefix}.{name}": tensor.shape
        for prefix, part in modules.items()
        for name, tensor in part.state_dict().items()
    }


def _check_names(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size], source: str) -> None:
    """Refuse a state dict that does not fit, naming what does not."""
    missing = [name for name in expected if name not in state]
    unknown = [name for name in state if name not in expected]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(shape)}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    faults = (("lacks", missing), ("has unknown keys", unknown), ("has other shapes", reshaped))
    found = [f"{what} {_list_names(names)}" for what, names in faults if names]
    if found:
        raise ValueError(f"{source} {' and '.join(found)}: check that the config and the weights belong together")


def _list_names(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
