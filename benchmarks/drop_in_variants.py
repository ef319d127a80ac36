"""The ways of running one transformers DebertaV2Model: as it is, ours, and two libraries patched into it.

A variant turns a model and is undone after its turn. Ours and FlashDeBERTa change classes in place; DisentangledFlash
builds modules of its own, so it gets a copy. A library that is not installed raises ImportError, which is its row.
Used by: benchmarks/drop_in.py. Tested by: tests/benchmarks/test_drop_in.py.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

import disentangled


@dataclass(frozen=True)
class Variant:
    """What it is called, and a function that lends the turned model; builds_modules: whose caches are then empty."""

    label: str
    lend: Callable[[nn.Module], Any]
    needs_gpu: bool = False
    builds_modules: bool = False


@contextmanager
def lend_transformers(model: nn.Module) -> Iterator[nn.Module]:
    """transformers' own eager code."""
    yield model


@contextmanager
def lend_ours(model: nn.Module, unpad: bool) -> Iterator[nn.Module]:
    """disentangled.accelerate, in place."""
    try:
        yield disentangled.accelerate(model, unpad=unpad)
    finally:
        disentangled.restore(model)


@contextmanager
def lend_flashdeberta(model: nn.Module) -> Iterator[nn.Module]:
    """FlashDeBERTa's self-attention in transformers' encoder: it has no parameters of its own, and no dropout."""
    from flashdeberta import FlashDisentangledSelfAttention
    from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

    attentions = [module for module in model.modules() if type(module) is DisentangledSelfAttention]
    try:
        for attention in attentions:
            attention.__class__ = FlashDisentangledSelfAttention
        yield model
    finally:
        for attention in attentions:
            attention.__class__ = DisentangledSelfAttention


@contextmanager
def lend_disentangled_flash(model: nn.Module) -> Iterator[nn.Module]:
    """DisentangledFlash's own way into a model, the one that can be trained."""
    from disentangled_flash import optimize_deberta_training

    copied = copy.deepcopy(model)
    optimize_deberta_training(copied)
    yield copied


VARIANTS = {
    "transformers": Variant("transformers eager", lend_transformers),
    "ours": Variant("ours", partial(lend_ours, unpad=True)),
    "ours_all_tokens": Variant("ours, unpad=False", partial(lend_ours, unpad=False)),
    "disentangled_flash": Variant("DisentangledFlash", lend_disentangled_flash, needs_gpu=True, builds_modules=True),
    "flashdeberta": Variant("FlashDeBERTa", lend_flashdeberta, needs_gpu=True),
}
