import re
from pathlib import Path

import pytest

from disentangled.trainer.ds_config import DS_CONFIGS, load_ds_config, merge_ds_config
from disentangled.trainer.run_config import (
    RECIPES,
    RunConfig,
    accumulation_steps,
    differing_keys,
    dotted_keys,
    get_key,
    load_run_config,
    to_dict,
)
from disentangled.trainer.sections import BatchSection

SHIPPED = sorted(path.stem for path in RECIPES.glob("*.toml"))

WIDTH = ["model.hidden_size=128"]


def write_recipe(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_recipes_are_found_by_path_and_by_name(tmp_path: Path) -> None:
    assert {"tiny", "base", "xsmall"} <= set(SHIPPED)
    assert load_run_config("tiny") == load_run_config("recipes/tiny.toml") == load_run_config(RECIPES / "tiny.toml")
    with pytest.raises(ValueError, match=r"recipe huge does not exist: .*one of .*tiny"):
        load_run_config("huge")


@pytest.mark.parametrize("recipe", SHIPPED)
@pytest.mark.parametrize("engine", sorted(path.stem for path in DS_CONFIGS.glob("*.json")))
def test_every_recipe_resolves_with_every_ds_config(recipe: str, engine: str) -> None:
    config = load_run_config(recipe)
    merged = merge_ds_config(
        load_ds_config(engine),
        micro_sequences=config.batch.micro_sequences,
        accumulation=accumulation_steps(config.batch, world_size=1),
    )
    assert merged["train_micro_batch_size_per_gpu"] == config.batch.micro_sequences
    discriminator, generator = config.model.discriminator(1000), config.model.generator(1000)
    assert discriminator.vocab_size == generator.vocab_size == (config.model.vocab_size or 1000)
    assert generator.num_hidden_layers == config.model.generator_num_hidden_layers
    assert generator.hidden_size == discriminator.hidden_size


@pytest.mark.parametrize("recipe", SHIPPED)
def test_every_recipe_divides_over_one_and_two_ranks(recipe: str) -> None:
    batch = load_run_config(recipe).batch
    for ranks in (1, 2):
        assert accumulation_steps(batch, ranks) * ranks * batch.micro_sequences == batch.global_sequences


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("batch.global_sequence", "batch.global_sequences"),
        ("model.hiden_size", "model.hidden_size"),
        ("data.learning_rate", "optimizer.learning_rate"),
        ("seed", "run.seed"),
        ("optimizer.warmup_steps", "schedule.warmup_steps"),
        ("lgo.every_steps", "every_steps"),
    ],
)
def test_unknown_key_is_an_error_that_names_the_nearest(tmp_path: Path, key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=rf"the command line has an unknown key '{key}': did you mean '.*{nearest}'\?"):
        load_run_config("tiny", [f"{key}=3"])
    recipe = write_recipe(tmp_path, f"{key} = 3\n")
    with pytest.raises(ValueError, match=rf"mine.toml has an unknown key '{key}': did you mean '.*{nearest}'\?"):
        load_run_config(recipe)


@pytest.mark.parametrize(
    ("key", "owner"),
    [
        ("zero_optimization.stage", "the ds_config owns: set it in the --engine file"),
        ("bf16.enabled", "the ds_config owns: set it in the --engine file"),
        ("train_micro_batch_size_per_gpu", "in a recipe it is batch.micro_sequences"),
        ("gradient_clipping", "in a recipe it is optimizer.gradient_clipping"),
        ("scheduler.type", r"in a recipe it is schedule\.\*"),
    ],
)
def test_key_of_the_ds_config_is_refused_with_its_place(tmp_path: Path, key: str, owner: str) -> None:
    with pytest.raises(ValueError, match=f"the command line holds .*'{key}'.*{owner}"):
        load_run_config("tiny", [f"{key}=1"])
    with pytest.raises(ValueError, match=f"mine.toml holds .*'{key}'.*{owner}"):
        load_run_config(write_recipe(tmp_path, f"{key} = 1\n"))


@pytest.mark.parametrize(
    ("override", "kind"),
    [
        ("model.hidden_size=wide", "int"),
        ("model.hidden_size=12.5", "int"),
        ("model.hidden_size=[1]", "int"),
        ("optimizer.learning_rate=fast", "float"),
        ("log.tensorboard=1", "bool"),
        ("log.tensorboard=yes", "bool"),
        ("model.pos_att_type=c2p", "tuple"),
        ("model.pos_att_type=[1]", "tuple"),
    ],
)
def test_value_of_the_wrong_type_is_an_error(override: str, kind: str) -> None:
    key, _, value = override.partition("=")
    with pytest.raises(ValueError, match=f"{re.escape(key)} is .*{re.escape(value)}.*: it must be of type {kind}"):
        load_run_config("tiny", [override])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("model.hidden_size=256", 256),
        ("schedule.total_steps=1_000_000", 1_000_000),
        ("optimizer.learning_rate=1e-4", 1e-4),
        ("optimizer.learning_rate=1", 1.0),
        ("log.tensorboard=false", False),
        ('model.pos_att_type=["c2p"]', ("c2p",)),
        ("run.dir=runs/a=b", "runs/a=b"),
        ("run.dir='runs/quoted'", "runs/quoted"),
        ("run.dir=1e3", "1e3"),  # text stays what was typed
        ("run.dir=2024-01-01", "2024-01-01"),
        ("run.dir=", ""),
    ],
)
def test_override_is_read_as_its_keys_type(override: str, value: object) -> None:
    config = load_run_config("tiny", [override])
    found = get_key(config, override.partition("=")[0])
    assert found == value and type(found) is type(value)


def test_overrides_win_over_the_recipe_and_later_ones_over_earlier(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "[run]\nseed = 5\n[log]\nevery_steps = 7\n")
    config = load_run_config(recipe, ["run.seed=6", "run.seed=8"])
    assert (config.run.seed, config.log.every_steps) == (8, 7)
    assert config.schedule == RunConfig().schedule


def test_override_without_a_value_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'run.seed' has no '=': write section.key=value"):
        load_run_config("tiny", ["run.seed"])


@pytest.mark.parametrize("content", [b"[model\n", b"run.seed = \n", b"# \xff\n"])
def test_recipe_that_is_no_toml_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"mine.toml is not valid TOML"):
        load_run_config(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*WIDTH, "model.num_attention_heads=3"],
            "num_attention_heads is 3, which does not divide model.hidden_size 128",
        ),
        ([*WIDTH, "model.num_attention_heads=3", "model.vocab_size=600"], "does not divide.*one of 1, 2, 4, 8"),
        (["batch.micro_sequences=0"], "batch.micro_sequences is 0: it must be at least 1"),
        (["optimizer.learning_rate=0"], "optimizer.learning_rate is 0.0: it must be above 0"),
        (["masking.probability=1.0"], "masking.probability is 1.0: it must lie between 0 and 1"),
        (["schedule.total_steps=9", "schedule.warmup_steps=10"], r"warmup_steps is 10: .*total_steps \(9\)"),
        (["data.sequence_length=9999"], "data.sequence_length is 9999: .*model.max_position_embeddings"),
        (["data.sequence_length=3"], "data.sequence_length is 3"),
        (["run.seed=-1"], "run.seed is -1"),
        (["checkpoint.keep_last=0"], "checkpoint.keep_last is 0"),
        (["checkpoint.keep_every_steps=-1"], "checkpoint.keep_every_steps is -1"),
        (["faults.hang_seconds=-1"], "faults.hang_seconds is -1"),
        (["batch.first_sequences=16"], "first_sequences is 16 and batch.rise_steps 0: a warm-up needs both"),
        (["batch.rise_steps=16"], "first_sequences is 0 and batch.rise_steps 16: a warm-up needs both"),
        (["batch.first_sequences=12", "batch.rise_steps=9"], r"first_sequences is 12: .*_sequences \(32\)"),
        (["batch.first_sequences=32", "batch.rise_steps=9"], r"first_sequences is 32: .*_sequences \(32\)"),
    ],
)
def test_value_out_of_range_is_an_error_that_names_the_rule(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message) as fault:
        load_run_config("tiny", overrides)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("global_sequences", "micro_sequences", "world_size", "accumulation"),
    [(256, 32, 1, 8), (256, 32, 8, 1), (256, 8, 4, 8), (6, 3, 2, 1)],
)
def test_accumulation_follows_from_the_batch(
    global_sequences: int, micro_sequences: int, world_size: int, accumulation: int
) -> None:
    assert accumulation_steps(BatchSection(global_sequences, micro_sequences), world_size) == accumulation


@pytest.mark.parametrize(
    ("global_sequences", "micro_sequences", "world_size", "remedy"),
    [
        (100, 32, 2, "set batch.global_sequences=128 or batch.micro_sequences=25$"),
        (60, 32, 1, "set batch.global_sequences=64 or batch.micro_sequences=30$"),
        (16, 32, 2, "set batch.global_sequences=64 or batch.micro_sequences=8$"),
        (7, 2, 2, "set batch.global_sequences=8$"),  # no micro-batch divides 7 over two ranks
        (1, 1, 2, "set batch.global_sequences=2$"),
    ],
)
def test_indivisible_batch_is_an_error_that_names_the_nearest(
    global_sequences: int, micro_sequences: int, world_size: int, remedy: str
) -> None:
    with pytest.raises(ValueError, match=remedy):
        accumulation_steps(BatchSection(global_sequences, micro_sequences), world_size)


def test_first_batch_of_a_warm_up_must_be_whole_micro_batches_too() -> None:
    batch = BatchSection(64, 8, first_sequences=16, rise_steps=10)
    assert accumulation_steps(batch, 2) == 4
    with pytest.raises(ValueError, match=r"first_sequences 16 is not a multiple of batch.micro_sequences 8 x 4 ranks"):
        accumulation_steps(batch, 4)


def test_dotted_keys_are_every_key_once() -> None:
    keys = list(dotted_keys(RunConfig()))
    assert len(keys) == len(set(keys))
    assert {"model.hidden_size", "data.shards", "batch.global_sequences", "run.dir", "log.every_steps"} <= set(keys)


def test_differing_keys_are_those_that_change_what_is_computed() -> None:
    saved = to_dict(load_run_config("tiny"))
    same = ["run.dir=a", "data.shards=b", "batch.micro_sequences=8", "log.every_steps=1", "checkpoint.keep_last=9"]
    same += ["faults.spike_factor=3.0", "machine.recompute_generator=true", "machine.compile_discriminator=true"]
    assert differing_keys(saved, load_run_config("tiny", same)) == []
    changed = load_run_config("tiny", ["run.seed=9", "optimizer.beta2=0.9", "model.hidden_size=64"])
    assert differing_keys(saved, changed) == ["model.hidden_size", "optimizer.beta2", "run.seed"]


def test_key_that_is_newer_than_the_run_had_its_default() -> None:
    saved = to_dict(load_run_config("tiny"))
    del saved["masking"]["unit"], saved["faults"]
    assert differing_keys(saved, load_run_config("tiny")) == []
    assert differing_keys(saved, load_run_config("tiny", ["masking.unit=span"])) == ["masking.unit"]
    saved["masking"]["gone"] = 1
    assert differing_keys(saved, load_run_config("tiny")) == ["masking.gone"]


def test_true_is_no_number() -> None:
    with pytest.raises(ValueError, match=r"model.hidden_size is True: it must be of type int"):
        load_run_config("tiny", ["model.hidden_size=true"])
