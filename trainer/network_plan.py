"""What a run sends: `python -m disentangled.trainer.network_plan --recipe R --engine E [section.key=value ...]`.

What: bytes that each rank hands to collectives in a step, for both engines and each ZeRO stage, and how long they take
on a given network beside the computation. Bytes follow from the recipe and are tested against what ranks really send.
Times are a model, not a measurement: NCCL's rings, which use all network cards of a host, nothing overlapped,
computation at an assumed share of the data sheet's peak. They tell which of two set-ups is bound by the network, not
what a cluster will do.
Used by: users, docs/clusters.md. Tested by tests/trainer/test_network_plan.py.
"""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from disentangled.model.discriminator import Discriminator
from disentangled.model.flops import step_flops
from disentangled.model.generator import Generator
from disentangled.trainer.command_line import EXIT_USER_ERROR, OneLineParser, print_error
from disentangled.trainer.device_peaks import peak_flops
from disentangled.trainer.ds_config import load_ds_config, precision_of, reduced_dtype_of, zero_stage_of
from disentangled.trainer.run_config import RunConfig, accumulation_steps, load_run_config

DTYPE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "autocast": 4}
RANKS = (8, 16, 32, 64, 128, 256, 512, 1024)
RANKS_OF_HOST = 8
# DeepSpeed's defaults at stage 3: a model with fewer parameters stays gathered from forward to backward, and a
# parameter with fewer elements from one update to the next
LIVE_PARAMETERS = 10**9
PERSISTENT_ELEMENTS = 10**5
# by kind: what a rank of a ring of N sends for each byte handed over, times N / (N - 1)
RING_PASSES = {"all_reduce": 2, "reduce_scatter": 1, "all_gather": 1}
HEAD = "stage  ranks  micro-batches  GB handed over   GB sent  s computing  s sending  sending, share"


@dataclass(frozen=True)
class Sizes:
    """Elements of each parameter of both models, and those of E_G, which the discriminator's step looks up."""

    generator: tuple[int, ...]
    discriminator: tuple[int, ...]
    shared_table: int


def count_parameters(config: RunConfig) -> Sizes:
    """Of a recipe's models, which are not built. ValueError where the recipe does not say its vocabulary."""
    vocab_size = config.model.vocab_size
    if not vocab_size:
        raise ValueError("model.vocab_size is 0, the shards' own: add model.vocab_size=N to the command")
    with torch.device("meta"):
        generator = Generator(config.model.generator(vocab_size), 0)
        discriminator = Discriminator(config.model.discriminator(vocab_size), config.model.embedding_sharing)
    elements = [tuple(p.numel() for p in model.parameters()) for model in (generator, discriminator)]
    return Sizes(elements[0], elements[1], generator.word_embeddings.numel())


def step_traffic(sizes: Sizes, config: RunConfig, ds_config: dict[str, Any], accumulation: int) -> Counter[str]:
    """Bytes that a rank of several hands to each kind of collective in one step; norms and counters are left out."""
    stage = zero_stage_of(ds_config)
    weight = DTYPE_BYTES[precision_of(ds_config)]
    gradient = DTYPE_BYTES[reduced_dtype_of(ds_config)]
    zero = ds_config.get("zero_optimization", {})
    live = min(zero.get(key, LIVE_PARAMETERS) for key in ("stage3_max_live_parameters", "stage3_max_reuse_distance"))
    persistent = zero.get("stage3_param_persistence_threshold", PERSISTENT_ELEMENTS)
    # stages 0 and 1 add gradients up locally and reduce them once a step
    reductions = accumulation if stage >= 2 else 1
    traffic: Counter[str] = Counter()
    for elements in (sizes.generator, sizes.discriminator):
        parameters = sum(elements)
        traffic["reduce_scatter" if stage == 3 else "all_reduce"] += reductions * parameters * gradient
        if stage in (1, 2):
            traffic["all_gather"] += parameters * weight
        if stage == 3:
            large = sum(number for number in elements if number > persistent)
            gathers = accumulation * (1 if parameters <= live else 2)
            traffic["all_gather"] += (gathers * large + parameters - large) * weight
    if stage == 3 and config.model.embedding_sharing != "nes":
        traffic["all_gather"] += sizes.shared_table * weight
    return traffic


def sent_bytes(traffic: Counter[str], num_ranks: int) -> float:
    """What each rank of a ring sends (and receives) for this traffic."""
    return sum(RING_PASSES[kind] * size for kind, size in traffic.items()) * (num_ranks - 1) / num_ranks


def global_flops(config: RunConfig) -> int:
    """Operations of one step over all ranks, all rows full, one document each."""
    tokens = config.batch.global_sequences * config.data.sequence_length
    vocab_size = config.model.vocab_size
    generator, discriminator = config.model.generator(vocab_size), config.model.discriminator(vocab_size)
    masked = round(tokens * config.masking.probability)
    return step_flops(generator, discriminator, tokens, masked, config.data.sequence_length)


def plan_rows(
    config: RunConfig,
    ds_config: dict[str, Any],
    ranks: Sequence[int],
    *,
    peak: float,
    utilization: float,
    host_bytes_per_second: float,
    network_bytes_per_second: float,
) -> list[str]:
    """A line of the table for each number of ranks; micro-batches are the recipe's, or smaller where there is no work.

    Args:
        peak: FLOP/s of one device.
        utilization: the share of it that is assumed.
        host_bytes_per_second: of one GPU to the others of its host, each way.
        network_bytes_per_second: of a host to others, each way, all its cards together.
    """
    sizes = count_parameters(config)
    rows = []
    for number in ranks:
        micro = min(config.batch.micro_sequences, config.batch.global_sequences // number)
        accumulation = accumulation_steps(replace(config.batch, micro_sequences=max(1, micro)), number)
        traffic = step_traffic(sizes, config, ds_config, accumulation)
        sent = sent_bytes(traffic, number)
        link = host_bytes_per_second if number <= RANKS_OF_HOST else network_bytes_per_second
        computing = global_flops(config) / (number * peak * utilization)
        sending = sent / link
        rows.append(
            f"{zero_stage_of(ds_config):5}  {number:5,}  {accumulation:6} of {micro:3}  {traffic.total() / 1e9:14.2f}"
            f"  {sent / 1e9:8.2f}  {computing:11.3f}  {sending:9.3f}  {sending / (computing + sending):14.0%}"
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = OneLineParser(
        prog="python -m disentangled.trainer.network_plan", description=__doc__.splitlines()[2], allow_abbrev=False
    )
    parser.add_argument("--recipe", required=True, help="TOML file of the experiment, or the name of a shipped one")
    parser.add_argument("--engine", required=True, help="DeepSpeed JSON, or the name of a shipped one")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS), help="numbers of ranks (%(default)s)")
    parser.add_argument("--stages", type=int, nargs="+", default=[], help="ZeRO stages; default: the engine's own")
    parser.add_argument("--device", default="NVIDIA H100 80GB HBM3", help="one of device_peaks.py (%(default)s)")
    parser.add_argument("--utilization", type=float, default=0.4, help="assumed share of its peak (%(default)s)")
    parser.add_argument("--host-gbytes", type=float, default=450.0, help="GB/s inside a host, each way (%(default)s)")
    parser.add_argument("--network-gbytes", type=float, default=400.0, help="GB/s of a host, each way (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    try:
        options = parser.parse_intermixed_args(arguments)
        config, ds_config = load_run_config(options.recipe, options.overrides), load_ds_config(options.engine)
        peak = peak_flops(options.device, precision_of(ds_config))
        if peak is None:
            raise ValueError(f"--device {options.device!r} has no known peak: see trainer/device_peaks.py")
        rows = []
        for stage in options.stages or [zero_stage_of(ds_config)]:
            zero = ds_config.get("zero_optimization", {}) | {"stage": stage}
            rows += plan_rows(
                config, ds_config | {"zero_optimization": zero}, options.ranks, peak=peak,
                utilization=options.utilization, host_bytes_per_second=options.host_gbytes * 1e9,
                network_bytes_per_second=options.network_gbytes * 1e9,
            )  # fmt: skip
    except (ValueError, OSError) as error:
        print_error(error)
        return EXIT_USER_ERROR
    print(HEAD, *rows, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
