"""Shipped recipes against the papers' tables, typed from them; where we part, the recipe has a comment."""

import pytest

from disentangled.trainer.run_config import get_key, load_run_config

# arXiv 2111.09543 table 10; large has 16 heads for the table's 12, small's head size is 64 for an empty cell
COLUMNS = (
    "model.num_hidden_layers", "model.hidden_size", "model.intermediate_size", "model.num_attention_heads",
    "optimizer.learning_rate", "batch.global_sequences", "schedule.total_steps", "optimizer.beta2",
)  # fmt: skip
ANALYSIS = (12, 768, 3072, 12, 5e-4, 2048, 125_000, 0.999)
TABLE_10 = {
    "large": (24, 1024, 4096, 16, 3e-4, 8192, 500_000, 0.98),
    "base": (12, 768, 3072, 12, 6e-4, 8192, 500_000, 0.98),
    "small": (6, 768, 3072, 12, 6e-4, 8192, 500_000, 0.98),
    "mdeberta_base": (12, 768, 3072, 12, 6e-4, 8192, 500_000, 0.98),
    "xsmall": (12, 384, 1536, 6, 6e-4, 8192, 500_000, 0.98),  # no column: small's schedule
    **{f"base_analysis_{sharing}": ANALYSIS for sharing in ("es", "nes", "gdes")},
    **{f"electra_base_{sharing}": ANALYSIS for sharing in ("es", "nes", "gdes")},  # table 9, appendix A.3
    # arXiv 2006.03654's V2 sizes as released, with large's schedule
    "v2_xlarge": (24, 1536, 6144, 24, 3e-4, 8192, 500_000, 0.98),
    "v2_xxlarge": (48, 1536, 6144, 24, 3e-4, 8192, 500_000, 0.98),
}
# the same in all columns, or in the text
EVERYWHERE = {
    "model.hidden_dropout_prob": 0.1,
    "model.attention_probs_dropout_prob": 0.1,
    "schedule.warmup_steps": 10_000,
    "schedule.kind": "linear",
    "schedule.final_factor": 0.0,
    "optimizer.kind": "adamw",
    "optimizer.weight_decay": 0.01,
    "optimizer.epsilon": 1e-6,
    "optimizer.beta1": 0.9,
    "optimizer.gradient_clipping": 1.0,
    "optimizer.rtd_lambda": 50.0,  # section 3.1, after ELECTRA
    "optimizer.discriminator_learning_rate": 0.0,
    "optimizer.update": "decoupled",
    "masking.probability": 0.15,
    "masking.unit": "token",
    "data.sequence_length": 512,
    "batch.first_sequences": 0,
}


@pytest.mark.parametrize("recipe", TABLE_10)
def test_recipe_has_the_papers_numbers(recipe: str) -> None:
    config = load_run_config(recipe)
    assert tuple(get_key(config, key) for key in COLUMNS) == TABLE_10[recipe]
    assert {key: get_key(config, key) for key in EVERYWHERE} == EVERYWHERE
    assert config.model.attention_head_size == 64
    assert config.model.generator_num_hidden_layers == config.model.num_hidden_layers // 2
    assert config.model.vocab_size == {"mdeberta_base": 251_000}.get(recipe, 30_522 if "electra" in recipe else 128_100)
    assert config.model.embedding_sharing == (recipe.rsplit("_", 1)[1] if recipe.endswith("es") else "gdes")
