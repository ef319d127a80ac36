"""`disentangled.accelerate(model)`: any transformers DebertaV2 model on this project's attention, in place.

No version of transformers from 4.48 to 5.23 has an attention registry for DebertaV2, so the encoder and its
self-attentions take classes of ours that derive from theirs. Parameters, names, config, device, dtype, checkpoints and
`isinstance` stay what they were, and copies and pickles of the model carry the change with them.
Used by: users, through the package's root; finetune's own commands. Tested by: tests/finetune/test_accelerate.py.
Not here: what the classes compute (fused_encoder.py, fused_attention.py).
"""

from typing import TypeVar

from torch import nn
from transformers.models.deberta_v2.modeling_deberta_v2 import (
    DebertaV2Encoder,
    DebertaV2ForQuestionAnswering,
    DisentangledSelfAttention,
)

from disentangled.finetune.fallback import say_once
from disentangled.finetune.fused_attention import FusedSelfAttention
from disentangled.finetune.fused_encoder import TO_ALL_TOKENS, FusedEncoder, UnpaddedEncoder
from disentangled.kernels.disentangled_attention.log_bucket import Positions

AnyModel = TypeVar("AnyModel", bound=nn.Module)


def accelerate(model: AnyModel, *, unpad: bool = True) -> AnyModel:
    """Turns every DebertaV2 encoder inside the model to the fused op, for inference and training; returns the model.

    Args:
        model: a DebertaV2 model with any head, or any module that contains one.
        unpad: compute live tokens alone; hidden states and logits at padding are then others than transformers' (zeros
            before the head). False computes all tokens and equals transformers at padding too: for code that reads
            padding, and for CUDA graphs and `torch.compile(fullgraph=True)`, as leaving padding out asks the host.

    Raises:
        ValueError: no DebertaV2 encoder in the model, or one that the op cannot take, named with the reason.
    """
    encoders = {name: module for name, module in model.named_modules() if isinstance(module, DebertaV2Encoder)}
    if not encoders:
        raise ValueError(
            f"{type(model).__name__} has no DebertaV2Encoder of transformers inside: give a DebertaV2 (or DeBERTaV3) "
            "model, or one that contains it; DeBERTa v1 is another architecture"
        )
    for name, encoder in encoders.items():
        _check_encoder(name, encoder)
    reads_padding = {
        id(module)
        for head in model.modules()
        if isinstance(head, DebertaV2ForQuestionAnswering)
        for module in head.modules()
    }
    for encoder in encoders.values():
        leaves_padding_out = unpad and id(encoder) not in reads_padding
        if unpad and not leaves_padding_out:
            say_once("the loss of question answering reads the logits of padding", TO_ALL_TOKENS)
        encoder.__class__ = UnpaddedEncoder if leaves_padding_out else FusedEncoder
        for attention in _attentions(encoder):
            attention.__class__ = FusedSelfAttention
    return model


def restore(model: AnyModel) -> AnyModel:
    """Gives every encoder that `accelerate` changed back to transformers' code; returns the model.

    Raises:
        ValueError: something replaced a forward in the meantime, and would go on calling ours.
    """
    changed = [module for module in model.modules() if isinstance(module, FusedEncoder | FusedSelfAttention)]
    for module in changed:
        _check_forward(module)
    for module in changed:
        if isinstance(module, FusedEncoder):
            module.__class__ = DebertaV2Encoder  # type: ignore[assignment]
        else:
            module.__class__ = DisentangledSelfAttention  # type: ignore[assignment]
    return model


def _attentions(encoder: nn.Module) -> list[DisentangledSelfAttention]:
    return [module for module in encoder.modules() if isinstance(module, DisentangledSelfAttention)]


def _check_encoder(name: str, encoder: DebertaV2Encoder) -> None:
    """Refuse an encoder whose forward, or whose attentions' forward, is someone else's, or whose sizes do not fit."""
    attentions = _attentions(encoder)
    if len(attentions) != len(encoder.layer):
        raise ValueError(
            f"{name or 'the model'} has {len(encoder.layer)} layers and {len(attentions)} self-attentions of "
            "transformers: undo what replaced them first"
        )
    known = (DebertaV2Encoder, FusedEncoder, UnpaddedEncoder, DisentangledSelfAttention, FusedSelfAttention)
    for module in (encoder, *attentions):
        if type(module) not in known:
            raise ValueError(
                f"{name or 'the model'} has a {type(module).__name__}, a class that is not transformers' own and may "
                "compute something else: accelerate models of transformers' classes only"
            )
        _check_forward(module)
    for attention in attentions:
        if attention.relative_attention:
            Positions(attention.position_buckets, attention.max_relative_positions)


def _check_forward(module: nn.Module) -> None:
    """Refuse a module whose class no longer decides what it computes."""
    if "forward" in vars(module):
        raise ValueError(
            f"the forward of a {type(module).__name__} was replaced, as by a device map: call disentangled.accelerate "
            "before that and disentangled.restore after it is undone"
        )
