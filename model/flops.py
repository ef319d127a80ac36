"""Floating-point operations of one pre-training step, counted from the configs.

What: multiply-adds count as two; backward as twice forward (arXiv 2001.08361 section 2.1). Attention counts content,
c2p and p2c scores over distances that exist: 2 N distances for N queries, less where the table is shorter.
Used by: trainer/loop.py for achieved TFLOP/s. Tested by tests/model/test_flops.py.
Not here: element-wise work, the optimizer.
"""

from disentangled.model.config import DebertaConfig

FORWARD_AND_BACKWARD = 3


def layer_flops(config: DebertaConfig, num_tokens: int, num_queries: int, length: int) -> int:
    """Forward operations of a layer: keys from `num_tokens`, all else for `num_queries`; documents of `length`."""
    width = config.hidden_size
    relative_rows = 2 * config.att_span
    keys = 4 * num_tokens * width * width
    queries = num_queries * (4 * width * width + 4 * width * config.intermediate_size)
    positions = len(config.pos_att_type) * 2 * relative_rows * width * width
    distances = min(2 * length - 1, relative_rows)
    scores = num_queries * width * 2 * (2 * length + len(config.pos_att_type) * distances)
    return keys + queries + positions + scores


def encoder_flops(config: DebertaConfig, num_tokens: int, length: int, num_layers: int | None = None) -> int:
    """Forward operations of the layers (all of them where `num_layers` is None) and of V2's convolution."""
    layers = config.num_hidden_layers if num_layers is None else num_layers
    convolution = 2 * num_tokens * config.hidden_size**2 * config.conv_kernel_size // config.conv_groups
    return layers * layer_flops(config, num_tokens, num_tokens, length) + convolution


def step_flops(
    generator: DebertaConfig, discriminator: DebertaConfig, num_tokens: int, num_masked: int, length: int
) -> int:
    """Operations of one pass of both models, backward too, over `num_tokens` tokens, `num_masked` of them masked."""
    return generator_flops(generator, num_tokens, num_masked, length) + discriminator_flops(
        discriminator, num_tokens, length
    )


def generator_flops(config: DebertaConfig, num_tokens: int, num_masked: int, length: int) -> int:
    """The generator's part of step_flops."""
    width = config.hidden_size
    # both passes of the mask decoder share their keys and values
    decoder = layer_flops(config, num_tokens, num_masked, length) + layer_flops(config, 0, num_masked, length)
    mlm_head = num_masked * 2 * width * (width + config.vocab_size)
    encoder = encoder_flops(config, num_tokens, length, config.num_hidden_layers - 1)
    return FORWARD_AND_BACKWARD * (encoder + decoder + mlm_head)


def discriminator_flops(config: DebertaConfig, num_tokens: int, length: int) -> int:
    """The discriminator's part of step_flops."""
    rtd_head = num_tokens * 2 * config.hidden_size * (config.hidden_size + 1)
    return FORWARD_AND_BACKWARD * (encoder_flops(config, num_tokens, length) + rtd_head)
