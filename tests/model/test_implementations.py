"""The trunk against transformers with each implementation of attention: hidden states and gradients, as test_parity.py
has them for the default one. "triton" runs in Triton's interpreter (tests/conftest.py), so sizes are tiny.
"""

import pytest
import torch

from disentangled.kernels.disentangled_attention import disentangled_attention, dispatch
from disentangled.model import attention
from tests.model.test_parity import assert_parity
from tests.model.tiny_models import padded_batch, tiny_config

LENGTHS = (1, 7, 20)


ARCHITECTURES = {
    "c2p and p2c": {},
    "c2p": {"pos_att_type": ("c2p",)},
    "p2c, own position keys": {"pos_att_type": ("p2c",), "share_att_key": False},
    "no buckets": {"position_buckets": 0},
}
CASES = [
    pytest.param(name, changes, marks=[pytest.mark.slow] if name == "triton" and changes else [], id=f"{name}, {kind}")
    for name in ("reference", "torch", "triton")
    for kind, changes in ARCHITECTURES.items()
]


@pytest.mark.parametrize(("implementation", "changes"), CASES)
def test_trunk_equals_transformers_with_each_implementation(implementation, changes, monkeypatch):
    if implementation == "triton" and not dispatch.IS_INTERPRETED:
        pytest.skip("runs on the CPU, in Triton's interpreter")
    calls = []

    def op(*tensors, **keywords):
        calls.append(keywords)
        return disentangled_attention(*tensors, implementation=implementation, **keywords)

    monkeypatch.setattr(attention, "disentangled_attention", op)
    config = tiny_config(num_hidden_layers=2, num_attention_heads=1, **changes)
    assert_parity(config, torch.float32, *padded_batch(LENGTHS))
    assert len(calls) == config.num_hidden_layers
