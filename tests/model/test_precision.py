"""Generator and discriminator in bfloat16 weights and under autocast: one step of each, its dtypes and its losses.

Not here: hidden states in bfloat16 against transformers (test_parity.py), and the sum of two embedding tables
(test_embedding_sharing.py).
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from disentangled.kernels.disentangled_attention import disentangled_attention
from disentangled.model.discriminator import Discriminator
from disentangled.model.generator import Generator
from disentangled.model.noise import discriminator_noise, generator_noise
from tests.model.tiny_models import MASK_ID, gradients, packed_run, sampling, scramble, text_ids, tiny_config

LAYOUT = packed_run((20, 9, 1), tail=3)
MASKED = torch.tensor([1, 6, 12, 22, 27])


def run_pair(sharing: str, dtype: torch.dtype, autocast: bool) -> tuple[float, float]:
    """Both losses; every parameter of both gets a finite gradient of its own dtype."""
    config = tiny_config(conv_kernel_size=3, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    generator = scramble(Generator(config, MASK_ID), seed=1).to(dtype)
    discriminator = scramble(Discriminator(config, sharing), seed=2).to(dtype)
    ids = text_ids(33)
    corrupted = ids.index_copy(0, MASKED, text_ids(5, seed=8))
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        output = generator(ids, LAYOUT, MASKED, generator_noise(3, 1), sampling())
        rows = None if sharing == "nes" else generator.word_embeddings[corrupted]
        judged = discriminator(corrupted, ids, LAYOUT, discriminator_noise(3, 1), rows)
    assert output.mlm_loss_sum.dtype == judged.rtd_loss_sum.dtype == torch.promote_types(dtype, torch.float32)
    output.mlm_loss_sum.backward()
    judged.rtd_loss_sum.backward()
    for model in (generator, discriminator):
        for name, gradient in gradients(model).items():
            assert gradient.isfinite().all(), name
            assert gradient.dtype == dtype, name
    return output.mlm_loss_sum.item(), judged.rtd_loss_sum.item()


@pytest.mark.parametrize("sharing", ["gdes", "es", "nes"])
@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.bfloat16, False), (torch.float32, True)], ids=["bf16", "autocast"]
)
def test_losses_in_bfloat16_are_those_of_float64_to_its_rounding(sharing, dtype, autocast):
    exact = run_pair(sharing, torch.float64, autocast=False)
    got = run_pair(sharing, dtype, autocast)
    # each logit, of size 1, carries the rounding of some ten layers' outputs; a loss sums 5 or 30 tokens
    for loss, expected, num_tokens in zip(got, exact, (5, 30), strict=True):
        assert abs(loss - expected) < 10 * torch.finfo(torch.bfloat16).eps * num_tokens**0.5


class Seen(TorchFunctionMode):
    """The types of the floating-point tensors that some functions were given."""

    def __init__(self, *functions: object) -> None:
        super().__init__()
        self.types: dict[object, set[torch.dtype]] = {function: set() for function in functions}

    def __torch_function__(self, function, types, arguments=(), keywords=None):
        if function in self.types:
            tensors = [x for x in arguments if isinstance(x, torch.Tensor) and x.is_floating_point()]
            self.types[function] |= {x.dtype for x in tensors}
        return function(*arguments, **(keywords or {}))


@pytest.mark.parametrize(
    ("dtype", "autocast"), [(torch.bfloat16, False), (torch.float32, True)], ids=["bf16", "autocast"]
)
def test_losses_sampling_and_the_sum_of_embeddings_stay_wide(dtype, autocast):
    products, block_sums, binary = torch.addmm, Tensor.logsumexp, F.binary_cross_entropy_with_logits
    with Seen(products, block_sums, binary, Tensor.cumsum) as seen:
        run_pair("gdes", dtype, autocast)
    # logits, what the draw keeps of them, and the other model's loss; a draw's cumulative sums are wider still
    assert seen.types[products] == seen.types[block_sums] == seen.types[binary] == {torch.float32}
    assert seen.types[Tensor.cumsum] == {torch.float64}


def test_embeddings_are_summed_and_normed_in_float32():
    model = scramble(Discriminator(tiny_config(), "gdes"), seed=2).to(torch.bfloat16)
    rows = torch.ones(33, 32, dtype=torch.bfloat16)
    with Seen(F.layer_norm) as seen:
        model.deberta.embeddings(text_ids(33), LAYOUT, None, rows)
    assert seen.types[F.layer_norm] == {torch.float32}


@pytest.mark.parametrize("spread", [1e-3, 1.0])
def test_layer_norm_of_bfloat16_has_float32_statistics(spread):
    # eps 1e-7 and the squares of small deviations are below bfloat16's resolution
    norm = torch.nn.LayerNorm(256, eps=1e-7)
    states = (spread * torch.linspace(-1, 1, 512).sin().view(2, 256)).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = norm(states)
    expected = norm.double()(states.double())
    for got in (norm.bfloat16()(states), under_autocast):
        error = float((got.double() - expected).detach().abs().max())
        assert error <= torch.finfo(torch.bfloat16).eps * float(expected.detach().abs().max())


@pytest.mark.parametrize("autocast", [False, True], ids=["bf16", "autocast"])
def test_attention_scores_are_summed_in_float32(autocast):
    # two keys whose scores, near 400, differ by 1: in bfloat16, whose numbers are 2 apart there, they would not
    query = torch.full((1, 2, 1, 16), 10.0, dtype=torch.bfloat16)
    key = torch.full((1, 2, 1, 16), 2.5, dtype=torch.bfloat16)
    key[0, 1, 0, 0] += 0.109375
    value = torch.eye(2, 16, dtype=torch.bfloat16).view(1, 2, 1, 16)
    wide = [x.float() if autocast else x for x in (query, key, value)]
    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        out = disentangled_attention(*wide, None, None, position_buckets=8, max_relative_positions=16, scale=1.0)
    scores = torch.einsum("qd,kd->qk", query[0, :, 0].double(), key[0, :, 0].double())
    expected = scores.softmax(-1)
    assert float((out[0, :, 0, :2].double() - expected).abs().max()) < torch.finfo(torch.bfloat16).eps
    assert float(expected[0, 1]) > 0.7
