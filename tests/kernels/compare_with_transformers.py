"""Speed of disentangled attention against transformers' eager DisentangledSelfAttention: forward and backward, float32.

    .venv/bin/python -m tests.kernels.compare_with_transformers [--threads 2] [--repeats 7]

Each shape first passes the error rule against the reference, in the same process; a red one prints no number. The two
are timed in turn, so that a busy machine slows both, and the median of each is kept: of the wall clock, and of the
process's CPU time, which other processes disturb less. "attention" is what lies between the projections and the
context; "module" has the projections of query, key, value and of the relative embeddings too.

Used for: the table in kernels/disentangled_attention/README.md. Not here: GPU timing.
"""

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import transformers
from torch import Tensor

from disentangled.kernels.disentangled_attention import disentangled_attention
from disentangled.kernels.disentangled_attention.log_bucket import Positions
from tests.kernels.attention_case import AttentionCase, attention_case
from tests.kernels.huggingface_attention import (
    huggingface_attention,
    huggingface_module,
    huggingface_relative_positions,
)

# batch, heads, tokens, head width, buckets: the tiny recipe's micro-batch, its relatives, the base model at full length
SHAPES = [
    (32, 4, 64, 32, 32),
    (32, 4, 64, 64, 256),
    (32, 4, 128, 32, 256),
    (32, 4, 128, 64, 256),
    (4, 12, 512, 64, 256),
]
Attend = Callable[[], Tensor]


def attention_alone(case: AttentionCase, positions: Positions) -> tuple[Attend, Attend, Sequence[Tensor]]:
    """transformers', ours, and what both are differentiated with respect to."""
    leaves = [x.detach().clone().requires_grad_() for x in case.tensors]
    live = torch.ones(leaves[0].shape[:2], dtype=torch.bool)
    theirs = functools.partial(huggingface_attention, *leaves, live, positions)
    return theirs, functools.partial(disentangled_attention, *leaves, **case.keywords), leaves


def whole_module(case: AttentionCase, positions: Positions) -> tuple[Attend, Attend, Sequence[Tensor]]:
    """The same with one set of projections, shared by content and positions."""
    batch, num_tokens, heads, head_width = case.grad_output.shape
    module = huggingface_module(heads, head_width, positions, share_att_key=True)
    hidden = torch.randn(batch, num_tokens, heads * head_width, requires_grad=True)
    rel_embeddings = torch.randn(2 * positions.att_span, heads * head_width, requires_grad=True)
    mask = torch.ones(batch, 1, num_tokens, num_tokens, dtype=torch.bool)
    relative_positions = huggingface_relative_positions(num_tokens, positions)

    def theirs() -> Tensor:
        context = module(hidden, mask, relative_pos=relative_positions, rel_embeddings=rel_embeddings)[0]
        return context.view(case.grad_output.shape)

    def ours() -> Tensor:
        projections = (module.query_proj, module.key_proj, module.value_proj)
        query, key, value = (project(hidden).view(case.grad_output.shape) for project in projections)
        rel_query, rel_key = (
            project(rel_embeddings).view(-1, heads, head_width).transpose(0, 1) for project in projections[:2]
        )
        return disentangled_attention(query, key, value, rel_key, rel_query, **case.keywords)

    return theirs, ours, [hidden, rel_embeddings, *module.parameters()]


def milliseconds(attend: Attend, leaves: Sequence[Tensor], grad_output: Tensor) -> tuple[float, float]:
    """Wall clock and CPU time of one forward and backward."""
    wall, cpu = time.perf_counter(), time.process_time()
    torch.autograd.grad(attend(), leaves, grad_output)
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}, "
        f"{torch.backends.cpu.get_cpu_capability()}, {arguments.threads} threads, median of {arguments.repeats}"
    )
    for batch, heads, num_tokens, head_width, buckets in SHAPES:
        positions = Positions(buckets, 512)
        case = attention_case(
            num_tokens,
            batch=batch,
            heads=heads,
            head_width=head_width,
            position_buckets=buckets,
            max_relative_positions=512,
        )
        case.assert_no_worse_than_eager()
        for compare in (attention_alone, whole_module):
            theirs, ours, leaves = compare(case, positions)
            torch.testing.assert_close(ours(), theirs(), rtol=0, atol=1e-5)  # also the warm-up
            rounds = [
                [milliseconds(attend, leaves, case.grad_output) for attend in (theirs, ours)]
                for _ in range(arguments.repeats + 1)
            ][1:]
            line = (
                f"B {batch} heads {heads} tokens {num_tokens} width {head_width} buckets {buckets} {compare.__name__}:"
            )
            for index, clock in enumerate(("wall", "cpu")):
                slow, fast = (statistics.median(each[side][index] for each in rounds) for side in (0, 1))
                line += f"  {clock} {slow:.1f} / {fast:.1f} ms = {slow / fast:.2f}"
            print(line, flush=True)


if __name__ == "__main__":
    main()
