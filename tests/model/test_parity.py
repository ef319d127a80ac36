"""The trunk against `transformers.DebertaV2Model`: same weights, same hidden states in every layer, same gradients.

Bounds on hidden states are the issue's: 1e-5 in float32, and 1e-7 in float64, where transformers still takes its scale
through float32. Gradients are held to the same bounds relative to the largest entry of their tensor.
Not here: the op alone (tests/kernels/), the mask decoder and heads (their own files).
"""

import pytest
import torch
from torch import Tensor
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from disentangled.kernels.disentangled_attention import disentangled_attention
from disentangled.model.layout import padded_layout
from tests.model.tiny_models import largest_error, padded_batch, tiny_config, twins
from tests.numerics import assert_no_worse_than_eager

BOUND = {torch.float32: 1e-5, torch.float64: 1e-7}
ODD_LENGTHS = (1, 7, 63, 130)

ARCHITECTURES = {
    "c2p and p2c, shared keys": {},
    "own position keys": {"share_att_key": False},
    "c2p only": {"pos_att_type": ("c2p",)},
    "p2c only": {"pos_att_type": ("p2c",)},
    "c2p only, own position keys": {"pos_att_type": ("c2p",), "share_att_key": False},
    "p2c only, own position keys": {"pos_att_type": ("p2c",), "share_att_key": False},
    "unnormalised relative table": {"norm_rel_ebd": "none"},
    "no buckets": {"position_buckets": 0},
    "no buckets, span from max_position_embeddings": {"position_buckets": -1, "max_relative_positions": -1},
    "relu": {"hidden_act": "relu"},
    "convolution": {"conv_kernel_size": 3},
    "convolution, gelu, groups": {"conv_kernel_size": 3, "conv_act": "gelu", "conv_groups": 4},
    "convolution of five taps": {"conv_kernel_size": 5},
}


def run_both(config, dtype, ids: Tensor, mask: Tensor, spread: float = 0.1):
    """Every hidden state [B, N, D] of both, and both models with the gradients of a loss over the live tokens."""
    reference, ours = twins(config, dtype, spread)
    theirs = reference(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    layout = padded_layout(mask)
    states = [h.view(*ids.shape, -1) for h in ours.hidden_states(ids.view(-1), layout)]
    weights = torch.randn(theirs[-1].shape, generator=torch.Generator().manual_seed(2)).to(dtype) * mask.unsqueeze(-1)
    for last in (theirs[-1], states[-1]):
        (last * weights).sum().backward()
    return theirs, states, reference, ours


def assert_parity(config, dtype, ids: Tensor, mask: Tensor) -> None:
    theirs, states, reference, ours = run_both(config, dtype, ids, mask)
    live = mask.bool()
    assert len(theirs) == len(states) == config.num_hidden_layers + 1
    for layer, (expected, got) in enumerate(zip(theirs, states, strict=True)):
        assert largest_error(expected[live], got[live]) <= BOUND[dtype], f"hidden state {layer}"
    expected_gradients = dict(reference.named_parameters())
    for name, parameter in ours.deberta.named_parameters():
        expected = expected_gradients[name].grad
        allowed = BOUND[dtype] * max(1.0, float(expected.abs().max()))
        assert largest_error(expected, parameter.grad) <= allowed, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("changes", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_trunk_equals_transformers_on_mixed_lengths(changes, dtype):
    assert_parity(tiny_config(**changes), dtype, *padded_batch(ODD_LENGTHS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("length", ODD_LENGTHS)
def test_trunk_equals_transformers_without_padding(length, dtype):
    assert_parity(tiny_config(conv_kernel_size=3), dtype, *padded_batch([length, length]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_trunk_equals_transformers_beyond_the_last_distance_of_v3(dtype):
    config = tiny_config(
        num_hidden_layers=2,
        num_attention_heads=2,
        position_buckets=256,
        max_relative_positions=-1,
        max_position_embeddings=512,
    )
    assert_parity(config, dtype, *padded_batch([600, 530]))


def test_padding_is_zero_where_transformers_zeroes_it():
    ids, mask = padded_batch(ODD_LENGTHS)
    theirs, states, *_ = run_both(tiny_config(conv_kernel_size=3), torch.float64, ids, mask)
    for expected, got in zip(theirs[:2], states[:2], strict=True):  # embeddings, and the layer before the convolution
        assert not got[mask == 0].any()
        assert largest_error(got, expected) <= BOUND[torch.float64]


def test_trunk_in_bfloat16_is_no_worse_than_twice_transformers():
    config = tiny_config(conv_kernel_size=3)
    ids, mask = padded_batch(ODD_LENGTHS)
    live = mask.bool()
    exact = [state.detach() for state in run_both(config, torch.float64, ids, mask)[0]]
    theirs, states, *_ = run_both(config, torch.bfloat16, ids, mask)
    for layer, (truth, eager, got) in enumerate(zip(exact, theirs, states, strict=True)):
        # both models start from weights rounded to bfloat16, so both carry that error too
        assert_no_worse_than_eager(got[live].detach(), eager[live].detach(), truth[live], f"hidden state {layer}")


def plain_attention(q: Tensor, k: Tensor, v: Tensor, rel_key: Tensor, rel_query: Tensor, slots: Tensor, scale: float):
    """Equation 4 of arXiv 2006.03654, score by score; q, k, v [N, heads, H], slots [N, N]."""
    scores = torch.einsum("ihd,jhd->hij", q, k)
    scores = scores + torch.einsum("ihd,hijd->hij", q, rel_key[:, slots])
    scores = scores + torch.einsum("jhd,hijd->hij", k, rel_query[:, slots])
    return torch.einsum("hij,jhd->ihd", (scores * scale).softmax(-1), v)


@pytest.mark.parametrize("rule", ["huggingface", "microsoft"])
def test_bucket_rule_is_the_named_original(rule):
    num_tokens, buckets, longest = 600, 256, 512
    random = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, num_tokens, 1, 8, generator=random, dtype=torch.float64)
    rel_key, rel_query = torch.randn(2, 1, 2 * buckets, 8, generator=random, dtype=torch.float64)
    distance = torch.arange(num_tokens).unsqueeze(1) - torch.arange(num_tokens)
    if rule == "microsoft":  # its build_relative_position clamps before it takes logarithms
        distance = distance.clamp(1 - longest, longest - 1)
    slots = (make_log_bucket_position(distance, buckets, longest).long() + buckets).clamp(0, 2 * buckets - 1)
    expected = plain_attention(q, k, v, rel_key, rel_query, slots, 24**-0.5)

    got = {
        name: disentangled_attention(
            *(x.unsqueeze(0) for x in (q, k, v)),
            rel_key,
            rel_query,
            position_buckets=buckets,
            max_relative_positions=longest,
            scale=24**-0.5,
            bucket_rule=name,
        )[0]
        for name in ("huggingface", "microsoft")
    }
    assert largest_error(got[rule], expected) <= BOUND[torch.float64]
    first = slice(0, num_tokens - longest)  # the queries that have a key 512 or more to their right
    assert largest_error(got["huggingface"][first], got["microsoft"][first]) > 1e-3
    assert torch.equal(got["huggingface"][first.stop :], got["microsoft"][first.stop :])
