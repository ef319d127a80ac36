"""DeBERTaV2's 24- and 48-layer models, as deep as they are and narrow, fine-tuned on two processes with ZeRO-3.

What is large in them is the number of layers; width changes no code path. The true sizes are counted, not run.
"""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, DebertaV2Config, DebertaV2ForSequenceClassification

from disentangled.trainer.ds_config import load_ds_config
from disentangled.trainer.launch import find_free_port
from disentangled.trainer.network_plan import LIVE_PARAMETERS
from tests.finetune.large_models import (
    ENGINES,
    NUM_RANKS,
    NUM_STEPS,
    ROWS_OF_RANK,
    Batch,
    logits_of,
    train_alone,
)
from tests.launching import ROOT, run_command
from tests.numerics import assert_no_worse_than_eager, largest

LAYERS = {"xlarge": 24, "xxlarge": 48}
NUM_TOKENS = 40


def deep_config(num_layers: int, num_heads: int = 1, vocab_size: int = 200) -> DebertaV2Config:
    """V2-xlarge's and xxlarge's architecture, which has 24 heads and 128,100 pieces."""
    width = 64 * num_heads
    return DebertaV2Config(
        vocab_size=vocab_size, hidden_size=width, num_attention_heads=num_heads, intermediate_size=4 * width,
        num_hidden_layers=num_layers, attention_head_size=64, relative_attention=True, position_buckets=256,
        norm_rel_ebd="layer_norm", share_att_key=True, pos_att_type="p2c|c2p", conv_kernel_size=3, conv_act="gelu",
        position_biased_input=False, max_relative_positions=-1, max_position_embeddings=512, type_vocab_size=0,
        pooler_dropout=0.0, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=3,
    )  # fmt: skip


def make_batch() -> Batch:
    """Rows of mixed lengths for all steps."""
    generator = torch.Generator().manual_seed(4)
    num_rows = NUM_STEPS * NUM_RANKS * ROWS_OF_RANK
    lengths = torch.randint(5, NUM_TOKENS + 1, (num_rows, 1), generator=generator)
    mask = (torch.arange(NUM_TOKENS) < lengths).long()
    ids = torch.randint(5, 200, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": ids[:, 1] % 3}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("num_layers", LAYERS.values(), ids=LAYERS.keys())
def test_deep_model_trains_with_zero_3_as_it_does_alone(num_layers: int, engine: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = DebertaV2ForSequenceClassification(deep_config(num_layers))
    model.save_pretrained(tmp_path / "initial")
    batch = make_batch()
    torch.save(batch, tmp_path / "batch.pt")
    finished = run_command(
        sys.executable, "-m", "deepspeed.launcher.runner", "--num_accelerators", str(NUM_RANKS), "--master_port",
        str(find_free_port()), "--module", "tests.finetune.large_models", str(tmp_path / "initial"),
        str(tmp_path / "batch.pt"), engine, str(tmp_path), seconds=1200,
    )  # fmt: skip
    assert finished.code == 0, finished
    found: dict[str, Any] = torch.load(tmp_path / "found.pt")

    dtype = torch.float32 if engine.endswith("fp32") else torch.bfloat16
    exact = train_alone(model, batch, torch.float64)
    eager = train_alone(model, batch, dtype)
    before = logits_of(model.double(), batch)
    assert_no_worse_than_eager(found["losses"], eager["losses"], exact["losses"], "losses")
    assert_no_worse_than_eager(found["logits"].to(dtype), eager["logits"], exact["logits"], "logits")

    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", dtype=dtype)
    reloaded = logits_of(again, batch)
    assert_no_worse_than_eager(reloaded, eager["logits"], exact["logits"], "logits of the saved model")
    assert largest(reloaded - before) > 3 * largest(eager["logits"] - exact["logits"]), "training moved the model"


@pytest.mark.parametrize(("name", "num_parameters"), [("xlarge", 886_958_595), ("xxlarge", 1_566_915_075)])
def test_page_has_the_memory_of_the_true_sizes(name: str, num_parameters: int) -> None:
    with torch.device("meta"):
        model = DebertaV2ForSequenceClassification(deep_config(LAYERS[name], num_heads=24, vocab_size=128_100))
    assert model.num_parameters() == num_parameters
    page = (ROOT / "docs/accelerate.md").read_text(encoding="utf-8")
    assert f"{num_parameters:,}" in page
    bucket = load_ds_config("zero3_bf16")["zero_optimization"]["reduce_bucket_size"]
    # weights in bf16 while they are gathered, and gradients on their way
    passing = 2 * min(num_parameters, LIVE_PARAMETERS) + 2 * bucket
    for num_ranks in (1, 8, 64):
        # weights in bf16 and fp32, two moments and the gradient in fp32
        states = (2 + 4 + 8 + 4) * num_parameters / num_ranks
        cells = [f"{size / 2**30:.2f}" for size in (states, passing, states + passing)]
        assert f"| {name}, {num_ranks} | {' | '.join(cells)} |" in page, cells
