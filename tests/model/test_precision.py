"""Generator and discriminator in bfloat16 weights and under autocast: one step of each, its dtypes and its losses.

Not here: hidden states in bfloat16 against transformers (test_parity.py), and the sum of two embedding tables
(test_embedding_sharing.py).
"""

from contextlib import nullcontext

import pytest
import torch

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
