"""What forward and backward of one micro-batch hold at most, traced on this machine's device.

What: both models without DeepSpeed, on full rows of one document each, in the engine's precision. A pass of a large
recipe would be slow on a CPU, so large tensors are not computed there, and a shorter pass is traced where it is
enough: what a pass holds is a constant, and a part that grows with rows, with layers, and with both, once every buffer
of bounded size is full.
Used by: trainer/memory_plan.py. Tested by tests/trainer/test_memory_plan.py.
Not here: weights, gradients that stay from one micro-batch to the next (trainer/memory_plan.py).
"""

import contextlib
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from disentangled.kernels.counter_rng import Stream
from disentangled.kernels.masked_lm_loss.eager import rows_at_once
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator, Sampling
from disentangled.model.noise import discriminator_noise, generator_noise
from disentangled.trainer.allocated_bytes import AllocatedBytes
from disentangled.trainer.batch import MaskedBatch
from disentangled.trainer.run_config import RunConfig

MASKED_OF_SHORTER_PASS = 256  # enough to fill all other buffers of bounded size
LAYERS = 2, 3  # of the shorter passes: the first and the last layer of the generator are not like those between
SMALL_ELEMENTS = 1 << 16  # layouts, distance tables and norms have fewer, scores and states of a recipe more
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class WithoutArithmetic(TorchDispatchMode):
    """Inside, large tensors are memory of the right form that nothing is written to.

    A pass then takes as long as its calls do, whatever its sizes, and none of the machine's memory, as pages that
    nothing touches take none. Small tensors are computed: shapes hang on some of them, and distance tables and places
    of tokens are kept for passes to come, which may compute.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, or make what it would give."""
        kwargs = kwargs or {}
        returns = func._schema.returns
        is_view = any(value.alias_info is not None and not value.alias_info.is_write for value in returns)
        if is_view or torch.Tag.data_dependent_output in func.tags:
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if given and _are_small(given):
            return func(*args, **kwargs)
        written = _written_arguments(func, args, kwargs)
        if written:
            return written[0] if len(returns) == 1 else tuple(written[: len(returns)])
        meta_args, meta_kwargs = tree_map_only(Tensor, partial(_empty_like, device="meta"), (args, kwargs))
        if "device" in kwargs:
            meta_kwargs["device"] = torch.device("meta")
        try:
            made = func(*meta_args, **meta_kwargs)
        except NotImplementedError:  # its shape hangs on numbers
            return func(*args, **kwargs)
        is_filled = not given and not func._schema.name.startswith("aten::empty")  # arange and its like
        if is_filled and _are_small(tree_leaves(made)):
            return func(*args, **kwargs)
        device = given[0].device if given else torch.device(kwargs.get("device") or "cpu")
        return tree_map_only(Tensor, partial(_empty_like, device=device), made)


def _are_small(values: list[Any]) -> bool:
    return all(value.numel() <= SMALL_ELEMENTS for value in values if isinstance(value, Tensor))


def _empty_like(value: Tensor, device: torch.device | str) -> Tensor:
    """Memory of the same form; integers and what is small are zero: they may be used as indices."""
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)
    is_index = not value.is_floating_point() or value.numel() <= SMALL_ELEMENTS
    return made.zero_() if is_index and made.device.type != "meta" else made


def _written_arguments(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """What the operation returns of its own arguments, in the order of its schema."""
    places = enumerate(func._schema.arguments)
    return [
        args[place] if place < len(args) else kwargs[argument.name]
        for place, argument in places
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def trace_activations(
    model: str, config: RunConfig, vocab_size: int, precision: str, device: torch.device, exact: bool = False
) -> int:
    """Bytes of `generator` or `discriminator`; exact: of the whole pass, however long it takes."""
    section, rows = config.model, config.batch.micro_sequences
    layers = section.generator_num_hidden_layers if model == "generator" else section.num_hidden_layers
    masked_of_row = max(1, round(config.data.sequence_length * config.masking.probability))
    # The loss's buffer of logits grows up to some rows and not beyond: both shorter passes are on rows' side of them.
    few = 1
    if model == "generator":
        full = -(-rows_at_once(vocab_size, torch.float32) // masked_of_row)
        few = full if rows > full else min(full, -(-MASKED_OF_SHORTER_PASS // masked_of_row))
    at_layers = (layers,) if exact or layers <= LAYERS[1] else LAYERS
    at_rows = (rows,) if exact or rows <= few + 1 else (few, few + 1)
    traced = [
        [_trace_pass(model, config, vocab_size, precision, device, some_layers, some_rows) for some_rows in at_rows]
        for some_layers in at_layers
    ]
    per_layers = [_extrapolate(at_rows, values, rows) for values in traced]
    return round(_extrapolate(at_layers, per_layers, layers))


def _extrapolate(places: tuple[int, ...], values: list[Any], place: int) -> float:
    if len(places) == 1:
        return float(values[0])
    slope = (values[1] - values[0]) / (places[1] - places[0])
    return float(values[0] + slope * (place - places[0]))


def _trace_pass(
    name: str, config: RunConfig, vocab_size: int, precision: str, device: torch.device, layers: int, rows: int
) -> int:
    section = replace(config.model, vocab_size=vocab_size, num_hidden_layers=layers, generator_num_hidden_layers=layers)
    with torch.device("meta"):
        model: nn.Module = (
            Generator(section.generator(vocab_size), 0)
            if name == "generator"
            else Discriminator(section.discriminator(vocab_size), section.embedding_sharing)
        )
    with AllocatedBytes(device) as allocated:
        model = model.to_empty(device=device).to(DTYPES.get(precision, torch.float32))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.01)  # what memory holds by chance may be no number
                parameter.grad = torch.zeros_like(parameter)  # as after an earlier micro-batch
        batch = full_batch(rows, config.data.sequence_length, config.masking.probability).to(device)
        banned = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        allocated.mark()
        with contextlib.nullcontext() if device.type == "cuda" else WithoutArithmetic():
            _run_pass(model, batch, banned, config, precision)
        return allocated.peak()


def _run_pass(model: nn.Module, batch: MaskedBatch, banned: Tensor, config: RunConfig, precision: str) -> None:
    layout = batch.layout()
    device = batch.buffer.device
    autocast = torch.autocast(device.type, torch.bfloat16) if precision == "autocast" else contextlib.nullcontext()
    with autocast:
        if isinstance(model, Generator):
            sampling = Sampling(0, Stream.REPLACEMENT, banned)
            generated = model(batch.original_ids, layout, batch.masked_rows, generator_noise(0, 0), sampling)
            loss = generated.mlm_loss_sum
        else:
            dtype = next(model.parameters()).dtype
            shape = batch.num_tokens, config.model.hidden_size
            rows = None
            if config.model.embedding_sharing != "nes":
                is_leaf = config.model.embedding_sharing == "es"
                rows = torch.zeros(shape, dtype=dtype, device=device, requires_grad=is_leaf)
            judged = model(batch.original_ids, batch.original_ids, layout, discriminator_noise(0, 0), rows)
            loss = judged.rtd_loss_sum
    loss.backward()


def full_batch(rows: int, row_tokens: int, probability: float) -> MaskedBatch:
    """Rows of one document each, without padding; the first tokens of each are masked."""
    starts = np.arange(rows + 1, dtype=np.int64) * row_tokens
    num_masked = max(1, round(row_tokens * probability))
    masked = (starts[:-1, None] + np.arange(num_masked)).ravel()
    return MaskedBatch.join(
        original_ids=np.zeros(rows * row_tokens, dtype=np.int64),
        cu_seqlens=starts,
        document_sample=np.arange(rows, dtype=np.int64),
        document_first_token=np.zeros(rows, dtype=np.int64),
        masked_rows=masked,
        masked_ids=np.zeros(masked.size, dtype=np.int64),
        max_seqlen=row_tokens,
    )
