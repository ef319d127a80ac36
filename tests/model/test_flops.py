"""Counted operations against a case worked out by hand and against torch's counter on running models."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from disentangled.model.config import generator_config
from disentangled.model.discriminator import Discriminator
from disentangled.model.flops import encoder_flops, layer_flops, step_flops
from disentangled.model.generator import Generator
from tests.model.tiny_models import MASK_ID, packed_run, padded_batch, sampling, text_ids, tiny_config, twins


def test_layer_equals_a_count_by_hand():
    # width 4, feed-forward 6, tables of 2 * 3 rows; 10 tokens in documents of 5, every token queries
    config = tiny_config(
        hidden_size=4, num_attention_heads=2, intermediate_size=6, position_buckets=3, max_relative_positions=20
    )
    projections = 4 * (2 * 10 * 4 * 4)  # query, key, value, output
    feed_forward = 2 * (2 * 10 * 4 * 6)
    tables = 2 * (2 * 6 * 4 * 4)
    content_and_context = 2 * (2 * 10 * 5 * 4)
    position_scores = 2 * (2 * 10 * 6 * 4)  # 9 distances, but 6 rows
    expected = projections + feed_forward + tables + content_and_context + position_scores
    assert layer_flops(config, 10, 10, 5) == expected
    # documents of 2 have 3 distances
    assert layer_flops(config, 10, 10, 2) == expected - 2 * (2 * 10 * 3 * 4) - 2 * (2 * 10 * 3 * 4)
    # 3 queries: only keys and values are those of all tokens
    fewer = 2 * (2 * 10 * 16) + 2 * (2 * 3 * 16) + 2 * (2 * 3 * 24) + tables + 2 * (2 * 3 * 5 * 4) + 2 * (2 * 3 * 6 * 4)
    assert layer_flops(config, 10, 3, 5) == fewer


@pytest.mark.parametrize("changes", [{}, {"pos_att_type": ("c2p",), "share_att_key": False}], ids=["v3", "c2p only"])
def test_encoder_equals_torchs_count_of_transformers(changes):
    config = tiny_config(**changes)
    ids, mask = padded_batch((20, 20, 20))  # 39 distances, more than the 16 rows that transformers multiplies with
    reference, _ = twins(config, torch.float32)
    with FlopCounterMode(display=False) as counter:
        reference(input_ids=ids, attention_mask=mask)
    assert encoder_flops(config, 60, 20) == counter.get_total_flops()


def test_convolution_adds_what_torch_counts():
    plain, convolved = tiny_config(), tiny_config(conv_kernel_size=3, conv_groups=2)
    ids, mask = padded_batch((20, 20, 20))
    counts = []
    for config in (plain, convolved):
        reference, _ = twins(config, torch.float32)
        with FlopCounterMode(display=False) as counter:
            reference(input_ids=ids, attention_mask=mask)
        counts.append(counter.get_total_flops())
    assert encoder_flops(convolved, 60, 20) - encoder_flops(plain, 60, 20) == counts[1] - counts[0]


def count_products(run) -> int:
    """Operations of linear layers alone: the attention's batched products depend on the implementation."""
    with FlopCounterMode(display=False) as counter:
        run()
    products = counter.get_flop_counts()["Global"]
    return sum(count for name, count in products.items() if name in (torch.ops.aten.addmm, torch.ops.aten.mm))


def test_step_equals_torchs_count_of_our_forward():
    discriminator = tiny_config(num_hidden_layers=3)
    generator = generator_config(discriminator, 2)
    ids, layout, masked = text_ids(60), packed_run((20, 20, 20)), torch.tensor([1, 7, 25, 42, 59])
    pair = Generator(generator, MASK_ID), Discriminator(discriminator, "nes")
    counted = count_products(lambda: pair[0](ids, layout, masked, None, sampling()))
    counted += count_products(lambda: pair[1](ids, ids, layout, None))
    # scores and context, 20 keys and 16 table rows a query and head: in 1 ordinary and 2 decoder passes, then in 3
    one_query = 2 * 32 * (2 * 20 + 2 * 16)
    attention = one_query * (60 + 2 * 5 + 3 * 60)
    assert step_flops(generator, discriminator, 60, 5, 20) == 3 * (counted + attention)


def test_backward_of_products_costs_twice_forward():
    model = Discriminator(tiny_config(), "nes")
    ids, layout = text_ids(60), packed_run((20, 20, 20))
    losses = []
    forward = count_products(lambda: losses.append(model(ids, ids, layout, None).rtd_loss_sum))
    # the relative table's projections included: its gradient and that of the table itself
    assert count_products(losses[0].backward) == 2 * forward
