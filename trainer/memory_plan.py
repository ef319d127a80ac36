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
from disentangled.trainer.ds_config import precision_of, zero_stage_of
from disentangled.trainer.network_plan import LIVE_PARAMETERS, Sizes, count_parameters
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
    weight = 2 if precision in ("bf16", "fp16") else FP32_BYTES
    accumulated = 2 if ds_config.get("data_types", {}).get("grad_accum_dtype") in ("bf16", "fp16") else FP32_BYTES
    own = sum(getattr(sizes, name))
    both = sum(sizes.generator) + sum(sizes.discriminator)
    share = -(-both // num_ranks) if stage else both
    # fp32 weights beside those that compute: ZeRO keeps them in fp32 too
    states = (3 if stage or weight == 2 else 2) * FP32_BYTES * share
    bucket = int(zero.get("reduce_bucket_size", BUCKET_ELEMENTS))
    if stage == 3:
        parameters = weight * share
        gathered = weight * min(own, int(zero.get("stage3_max_live_parameters", LIVE_PARAMETERS)))
        gradients, buckets = accumulated * share, 2 * bucket * weight  # each engine has its bucket from the start
    else:
        parameters, gathered = weight * both, 0
        gradients = weight * own if stage < 2 else 0
        if stage == 2:
            # a micro-batch's share is added to that of those before it
            gradients = accumulated * -(-own // num_ranks) * min(2, accumulation)
        elif weight == 2:
            gradients += accumulated * -(-own // num_ranks)
        buckets = bucket * weight * (2 if zero.get("overlap_comm") else 1) if stage else 0
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


def describe_memory(plan: MemoryPlan) -> list[str]:
    """The plan in lines."""
    lines = [f"{name:14} {value / 2**30:9.3f}" for name, value in vars(plan).items() if name != "host"]
    host = [f"{'on the host':14} {plan.host / 2**30:9.3f}"] if plan.host else []
    return [f"{'GiB of a rank':14} {'most':>9}", *lines, f"{'together':14} {plan.total / 2**30:9.3f}", *host]
