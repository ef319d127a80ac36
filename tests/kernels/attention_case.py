"""One call of disentangled_attention, made to be asked again: other implementation, other dtype, with gradients."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from disentangled.kernels.disentangled_attention import AttentionDropout, disentangled_attention
from tests.numerics import assert_no_worse_than_eager

NAMES = ("output", "grad_query", "grad_key", "grad_value", "grad_rel_key", "grad_rel_query")


@dataclass(frozen=True, eq=False)
class AttentionCase:
    """The five tensors (a table may be None), the gradient of the output, and the call's keywords."""

    tensors: tuple[Tensor | None, ...]
    grad_output: Tensor
    keywords: dict[str, Any] = field(default_factory=dict)

    def with_keywords(self, **keywords: Any) -> "AttentionCase":
        return replace(self, keywords=self.keywords | keywords)

    def with_tensors(self, **tensors: Tensor | None) -> "AttentionCase":
        named = dict(zip(("query", "key", "value", "rel_key", "rel_query"), self.tensors, strict=True)) | tensors
        return replace(self, tensors=tuple(named.values()))

    def on(self, device: torch.device | str) -> "AttentionCase":
        """The same case with everything on a device."""

        def moved(x: Any) -> Any:
            if isinstance(x, AttentionDropout):
                return replace(x, sample=x.sample.to(device), first_token=x.first_token.to(device))
            return x.to(device) if isinstance(x, Tensor) else x

        keywords = {name: moved(x) for name, x in self.keywords.items()}
        return AttentionCase(tuple(moved(x) for x in self.tensors), self.grad_output.to(device), keywords)

    def run(self, implementation: str | None, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
        """The output and the gradient of every tensor that is there, in `dtype` (None: as the tensors are)."""
        leaves = [None if x is None else x.detach().to(dtype or x.dtype).requires_grad_() for x in self.tensors]
        query, key, value, rel_key, rel_query = leaves
        output = disentangled_attention(
            query, key, value, rel_key, rel_query, implementation=implementation, **self.keywords
        )
        grads = torch.autograd.grad(output, [x for x in leaves if x is not None], self.grad_output.to(output.dtype))
        present = [name for name, x in zip(NAMES[1:], leaves, strict=True) if x is not None]
        return {"output": output.detach(), **dict(zip(present, grads, strict=True))}

    def assert_no_worse_than_eager(self, implementation: str = "torch") -> None:
        """The error rule for the output and for every gradient, in the dtype of the tensors."""
        self.assert_results_no_worse_than_eager(self.run(implementation))

    def assert_results_no_worse_than_eager(self, candidate: dict[str, Tensor]) -> None:
        """The error rule for what `run` gave."""
        eager, exact = self.run("reference"), self.run("reference", torch.float64)
        for name in exact:
            assert_no_worse_than_eager(candidate[name], eager[name], exact[name], name)


def attention_case(
    num_queries: int,
    num_keys: int | None = None,
    *,
    batch: int | None = 2,
    heads: int = 2,
    head_width: int = 16,
    position_buckets: int = 8,
    max_relative_positions: int = 16,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **keywords: Any,
) -> AttentionCase:
    """Normal random tensors; batch None makes them packed, [num_queries, heads, head_width]."""
    generator = torch.Generator().manual_seed(seed)
    num_keys = num_queries if num_keys is None else num_keys
    leading = () if batch is None else (batch,)
    num_rows = 2 * (position_buckets if position_buckets > 0 else max_relative_positions)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, heads, head_width, generator=generator, dtype=torch.float64).to(dtype)

    query, key, value = normal(*leading, num_queries), normal(*leading, num_keys), normal(*leading, num_keys)
    rel_key, rel_query = (normal(num_rows).transpose(0, 1) for _ in range(2))
    return AttentionCase(
        (query, key, value, rel_key, rel_query),
        normal(*leading, num_queries),
        {
            "position_buckets": position_buckets,
            "max_relative_positions": max_relative_positions,
            "scale": (3 * head_width) ** -0.5,
            **keywords,
        },
    )


def cumulative_lengths(*lengths: int) -> Tensor:
    """int32 [documents + 1], from 0."""
    return torch.tensor((0, *lengths)).cumsum(0).to(torch.int32)
