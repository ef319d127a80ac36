"""What each rank will hold in memory, before anything is launched.

What: parameters, gradients, optimizer states and buckets follow from the recipe, the engine and the number of ranks, as
DeepSpeed 0.19 allocates them; activations are traced (trainer/activation_trace.py). The two models take turns, so the
larger need of the two counts. What the device's allocator keeps beside that (fragments, the network library's own
buffers, the driver: a few GB) is not in it.
Used by: trainer/plan.py. Tested by tests/trainer/test_memory_plan.py, against tensors of real runs.
Not here: host memory of data workers.
"""

from dataclasses import dataclass
from typing import Any

import torch

from disentangled.trainer.activation_trace import trace_activations
from disentangled.trainer.ds_config import precision_of, reduced_dtype_of, zero_stage_of
from disentangled.trainer.network_plan import DTYPE_BYTES, LIVE_PARAMETERS, Sizes, count_parameters
from disentangled.trainer.run_config import RunConfig, accumulation_steps

FP32_BYTES, ID_BYTES = 4, 8
BUCKET_ELEMENTS = 5 * 10**8  # DeepSpeed's default reduce_bucket_size
TINY_VOCABULARY = 64  # the same pass with so many ids shows what the vocabulary costs


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes of one rank at the step's fullest moment; host: what offloading keeps in the host's memory instead.

    Attributes:
        parameters: of both models as they compute, gathered ones included.
        gradients: of the model whose turn it is; at stage 3 of both.
        optimizer: fp32 weights and both moments, of both models.
        activations: of a micro-batch, without the vocabulary's.
        vocabulary: a chunk of logits, and the table's gradient in the making.
        buckets: gradients on their way.
        shared_rows: corrupted ids of all of the step's micro-batches; at stage 3 also their rows of E_G.
    """

    parameters: int
    gradients: int
    optimizer: int
    activations: int
    vocabulary: int
    buckets: int
    shared_rows: int
    host: int

    @property
    def total(self) -> int:
        """Bytes on the device."""
        on_device = (self.parameters, self.gradients, self.optimizer, self.activations, self.vocabulary, self.buckets)
        return sum(on_device) + self.shared_rows


def plan_memory(
    config: RunConfig, ds_config: dict[str, Any], num_ranks: int, device: torch.device, exact: bool = False
) -> MemoryPlan:
    """The plan of one rank. exact: trace the whole micro-batch.

    Raises:
        ValueError: the batch does not divide by the ranks; model.vocab_size is not known.
    """
    accumulation = accumulation_steps(config.batch, num_ranks)
    sizes = count_parameters(config)
    precision = precision_of(ds_config)
    vocab_size = config.model.vocab_size
    traced = {
        name: trace_activations(name, config, vocab_size, precision, device, exact)
        for name in ("generator", "discriminator")
    }
    without = trace_activations("generator", config, TINY_VOCABULARY, precision, device, exact)
    turns = [
        _plan_turn(name, traced[name], without, config, ds_config, num_ranks, accumulation, sizes) for name in traced
    ]
    if config.model.embedding_sharing == "es":  # the discriminator runs inside the generator's turn
        turns = [
            _plan_turn("generator", sum(traced.values()), without, config, ds_config, num_ranks, accumulation, sizes)
        ]
    return max(turns, key=lambda plan: plan.total)


def _plan_turn(
    name: str,
    traced: int,
    without_vocabulary: int,
    config: RunConfig,
    ds_config: dict[str, Any],
    num_ranks: int,
    accumulation: int,
    sizes: Sizes,
) -> MemoryPlan:
    stage, precision = zero_stage_of(ds_config), precision_of(ds_config)
    zero = ds_config.get("zero_optimization", {})
    weight = DTYPE_BYTES[precision]
    own = sum(getattr(sizes, name))
    both = sum(sizes.generator) + sum(sizes.discriminator)
    share = -(-both // num_ranks) if stage else both
    # fp32 weights beside those that compute: ZeRO keeps them in fp32 too
    states = (3 if stage or weight == 2 else 2) * FP32_BYTES * share
    parameters = weight * (share if stage == 3 else both)
    gathered = weight * min(own, int(zero.get("stage3_max_live_parameters", LIVE_PARAMETERS))) if stage == 3 else 0
    gradients, buckets = _plan_gradients(own, both, ds_config, num_ranks, accumulation)
    host = 0
    if zero.get("offload_optimizer", {}).get("device", "none") != "none":
        host, states = states + gradients, 0
        gradients = gradients if stage < 2 else 0
    if stage == 3 and zero.get("offload_param", {}).get("device", "none") != "none":
        host, parameters = host + parameters, 0
    micro_batch_tokens = config.batch.micro_sequences * config.data.sequence_length
    shared_rows = ID_BYTES * accumulation * micro_batch_tokens
    if stage == 3 and name == "discriminator" and config.model.embedding_sharing == "gdes":
        # those of the micro-batch whose turn it is are among the activations
        shared_rows += (accumulation - 1) * micro_batch_tokens * config.model.hidden_size * weight
    vocabulary = max(0, traced - without_vocabulary) if name == "generator" else 0
    return MemoryPlan(
        parameters=parameters + gathered, gradients=gradients, optimizer=states, activations=traced - vocabulary,
        vocabulary=vocabulary, buckets=buckets, shared_rows=shared_rows, host=host,
    )  # fmt: skip


def _plan_gradients(
    own: int, both: int, ds_config: dict[str, Any], num_ranks: int, accumulation: int
) -> tuple[int, int]:
    """Bytes of gradients that are kept and of the buffers through which they go, while a pass goes backward.

    Buffers that are made and freed after it, when its activations are gone (stages 0 and 1 reduce there), are not in
    them: activations are larger.

    Args:
        own: elements of the model whose turn it is.
        both: of both models.
    """
    stage, weight = zero_stage_of(ds_config), DTYPE_BYTES[precision_of(ds_config)]
    zero = ds_config.get("zero_optimization", {})
    accumulated = DTYPE_BYTES[ds_config.get("data_types", {}).get("grad_accum_dtype") or "fp32"]
    reduced = DTYPE_BYTES[reduced_dtype_of(ds_config)]
    bucket = int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))
    num_buckets = 2 if stage == 3 or zero.get("overlap_comm") else 1  # at stage 3 one of each engine, from the start
    share, own_share = -(-both // num_ranks), -(-own // num_ranks)
    if stage == 0:
        return weight * own, 0
    if stage == 1:
        offloaded = zero.get("offload_optimizer", {}).get("device", "none") != "none"
        if precision_of(ds_config) == "bf16" and accumulated == FP32_BYTES and not offloaded:
            return accumulated * both, 0  # BF16_Optimizer: all of both engines from the start, and no bucket
        return accumulated * own, num_buckets * bucket * accumulated
    if stage == 2:
        # the first micro-batch's share is taken as it comes, later ones are added to it
        filled = min(bucket, own) * reduced if reduced != weight else 0  # a bucket's copy, to send it
        return accumulated * own_share * min(2, accumulation), num_buckets * bucket * weight + filled
    return accumulated * share, num_buckets * bucket * reduced


def describe_memory(plan: MemoryPlan) -> list[str]:
    """The plan in lines."""
    lines = [f"{name:14} {value / 2**30:9.3f}" for name, value in vars(plan).items() if name != "host"]
    host = [f"{'on the host':14} {plan.host / 2**30:9.3f}"] if plan.host else []
    return [f"{'GiB of a rank':14} {'most':>9}", *lines, f"{'together':14} {plan.total / 2**30:9.3f}", *host]
