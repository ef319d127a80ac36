"""What a config derives, and the one-line error of every wrong value."""

import pytest

from disentangled.model.config import DebertaConfig, generator_config
from tests.model.tiny_models import tiny_config

WRONG = {
    "no vocabulary": ({"vocab_size": 0}, "model.vocab_size is 0: it must be at least 1"),
    "no width": ({"hidden_size": 0}, "model.hidden_size is 0: it must be at least 1"),
    "no layers": ({"num_hidden_layers": 0}, "model.num_hidden_layers is 0: it must be at least 1"),
    "no heads": ({"num_attention_heads": 0}, "model.num_attention_heads is 0: it must be at least 1"),
    "no feed-forward": ({"intermediate_size": -1}, "model.intermediate_size is -1: it must be at least 1"),
    "no positions": ({"max_position_embeddings": 0}, "model.max_position_embeddings is 0: it must be at least 1"),
    "heads": (
        {"num_attention_heads": 5},
        "model.num_attention_heads is 5, which does not divide model.hidden_size 32: choose one of 1, 2, 4, 8, 16, 32",
    ),
    "activation": ({"hidden_act": "swish"}, "model.hidden_act is 'swish': choose one of gelu, tanh, relu"),
    "convolution's activation": ({"conv_act": "none"}, "model.conv_act is 'none': choose one of gelu, tanh, relu"),
    "attention term": ({"pos_att_type": ("c2p", "p2p")}, "model.pos_att_type is ['c2p', 'p2p']: it must hold c2p, p2c"),
    "attention term twice": (
        {"pos_att_type": ("c2p", "c2p")},
        "model.pos_att_type is ['c2p', 'c2p']: it must hold c2p",
    ),
    # the relative table would be a parameter that never gets a gradient
    "no attention term": ({"pos_att_type": ()}, "model.pos_att_type is []: it must hold c2p, p2c or both"),
    "relative norm": ({"norm_rel_ebd": "batch"}, "model.norm_rel_ebd is 'batch': choose none or layer_norm"),
    "dropout of one": (
        {"hidden_dropout_prob": 1.0},
        "model.hidden_dropout_prob is 1.0: it must be at least 0 and below 1",
    ),
    "negative dropout": (
        {"attention_probs_dropout_prob": -0.1},
        "model.attention_probs_dropout_prob is -0.1: it must be at least 0 and below 1",
    ),
    "spread": ({"initializer_range": 0.0}, "model.initializer_range is 0.0: it must be above 0"),
    "epsilon": ({"layer_norm_eps": -1e-7}, "model.layer_norm_eps is -1e-07: it must be above 0"),
    "one bucket": ({"position_buckets": 1}, "model.position_buckets is 1 but relative distances end at 16"),
    "too many buckets": ({"position_buckets": 30}, "model.position_buckets is 30 but relative distances end at 16"),
    "even convolution": ({"conv_kernel_size": 2}, "model.conv_kernel_size is 2: give an odd number, or 0 for none"),
    "negative convolution": (
        {"conv_kernel_size": -1},
        "model.conv_kernel_size is -1: give an odd number, or 0 for none",
    ),
    "convolution's groups": (
        {"conv_kernel_size": 3, "conv_groups": 5},
        "model.conv_groups is 5, which does not divide model.hidden_size 32: choose one of 1, 2, 4, 8, 16, 32",
    ),
    "no groups": ({"conv_kernel_size": 3, "conv_groups": 0}, "model.conv_groups is 0: it must be at least 1"),
}


@pytest.mark.parametrize(("changes", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_value_is_named_in_one_line(changes, message):
    with pytest.raises(ValueError) as caught:
        tiny_config(**changes)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_widest_buckets_are_those_that_the_error_names():
    with pytest.raises(ValueError, match="give 2 to 28, or 0 for none"):
        tiny_config(position_buckets=30)
    assert tiny_config(position_buckets=28).att_span == 28


def test_generator_without_layers_is_named_by_its_own_key():
    with pytest.raises(ValueError, match=r"^model\.generator_num_hidden_layers is 0: it must be at least 1$"):
        generator_config(tiny_config(), 0)


def test_generator_differs_in_depth_alone():
    config = tiny_config()
    generator = generator_config(config, 2)
    differing = [name for name in config.__dataclass_fields__ if getattr(config, name) != getattr(generator, name)]
    assert (differing, generator.num_hidden_layers) == (["num_hidden_layers"], 2)


def test_defaults_are_those_of_deberta_v3_base():
    config = DebertaConfig()
    assert (config.attention_head_size, config.relative_span, config.att_span) == (64, 512, 256)
    assert config.attention_scale == pytest.approx(192**-0.5, rel=1e-15)


def test_derived_sizes_follow_their_keys():
    assert tiny_config(position_buckets=0).att_span == 16
    assert tiny_config(position_buckets=-1, max_relative_positions=-1).att_span == 160
    assert tiny_config(pos_att_type=("p2c",)).attention_scale == 16**-0.5


def test_list_of_attention_terms_becomes_a_tuple():
    assert tiny_config(pos_att_type=["c2p", "p2c"]).pos_att_type == ("c2p", "p2c")
