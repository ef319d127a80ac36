"""One run's configuration: typed sections, a TOML recipe, dotted overrides; nothing unknown passes.

What: a recipe owns the experiment (model, data, masking, batch, optimizer, schedule, seed) and the rhythm of logging,
evaluation and checkpoints. How the engine runs (ZeRO stage, precision, buckets) belongs to a DeepSpeed JSON
(trainer/ds_config.py). A key has one owner.
Used by: trainer/train.py and everything it builds. Tested by tests/trainer/test_run_config.py.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from disentangled.trainer.key_owners import check_known, check_recipe_key
from disentangled.trainer.schedule import ScheduleSection
from disentangled.trainer.sections import (
    BatchSection,
    CheckpointSection,
    ContinueSection,
    DataSection,
    EvaluateSection,
    FaultsSection,
    LogSection,
    MachineSection,
    MaskingSection,
    ModelSection,
    OptimizerSection,
    RunSection,
)

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
# what a later launch of the same run may change: where it runs and what it reports, never what it computes; a name
# that ends in a dot is a whole section
MAY_CHANGE = (
    "run.dir",
    "data.shards",
    "data.workers",
    "data.cache",
    "data.cache_bytes",
    "batch.micro_sequences",
    "machine.",
    "log.",
    "evaluate.",
    "checkpoint.",
    "faults.",
    "continue_from.checkpoint",  # files may move; trainer/continue_from.py knows them by their content
    "continue_from.generator",
    "continue_from.tokenizer",
)


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    masking: MaskingSection = field(default_factory=MaskingSection)
    batch: BatchSection = field(default_factory=BatchSection)
    machine: MachineSection = field(default_factory=MachineSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    log: LogSection = field(default_factory=LogSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    faults: FaultsSection = field(default_factory=FaultsSection)
    continue_from: ContinueSection = field(default_factory=ContinueSection)
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        if not 4 <= self.data.sequence_length <= self.model.max_position_embeddings:
            raise ValueError(
                f"data.sequence_length is {self.data.sequence_length}: it must lie between 4 and "
                f"model.max_position_embeddings ({self.model.max_position_embeddings})"
            )

    def discriminator_rests(self, step: int) -> bool:
        """Whether the generator is trained alone in the update after `step` updates."""
        return self.optimizer.update == "mlm" or step < self.continue_from.generator_warmup_steps


def accumulation_steps(batch: BatchSection, world_size: int) -> int:
    """Micro-batches that each rank runs for one global batch of full size.

    Raises:
        ValueError: the global batch is no multiple of micro_sequences times the ranks; names the nearest that is.
            Or the first one of a warm-up is none.
    """
    per_pass = batch.micro_sequences * world_size
    accumulation, rest = divmod(batch.global_sequences, per_pass)
    if rest or not accumulation:
        nearest = max(1, round(batch.global_sequences / per_pass)) * per_pass
        fitting = [
            micro
            for micro in range(1, batch.global_sequences // world_size + 1)
            if batch.global_sequences % (micro * world_size) == 0
        ]
        micro = min(fitting, key=lambda value: (abs(value - batch.micro_sequences), value), default=None)
        keep_global = f" or batch.micro_sequences={micro}" if micro else ""
        raise ValueError(
            f"batch.global_sequences {batch.global_sequences} is not a multiple of batch.micro_sequences "
            f"{batch.micro_sequences} x {world_size} ranks: set batch.global_sequences={nearest}{keep_global}"
        )
    if batch.first_sequences % per_pass:
        raise ValueError(
            f"batch.first_sequences {batch.first_sequences} is not a multiple of batch.micro_sequences "
            f"{batch.micro_sequences} x {world_size} ranks: set batch.micro_sequences lower or "
            f"batch.first_sequences to such a multiple"
        )
    return accumulation


def load_run_config(recipe: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply overrides `section.key=value` (values in TOML's spelling; bare words are text).

    Raises:
        ValueError: an unreadable recipe, an unknown key (the nearest is named), a value of the wrong type or range.
    """
    path = find_recipe(recipe)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid TOML: {error}") from error
    config = RunConfig()
    known = list(dotted_keys(config))
    given: dict[str, dict[str, Any]] = {}
    for key, value in _flatten(values):
        check_recipe_key(key, known, f"recipe {path}")
        section, name = key.split(".")
        given.setdefault(section, {})[name] = _convert(key, value, _type_of(config, key))
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise ValueError(f"override {override!r} has no '=': write section.key=value")
        check_recipe_key(key, known, "the command line")
        section, name = key.split(".")
        kind = _type_of(config, key)
        given.setdefault(section, {})[name] = _convert(key, _parse_value(text, kind), kind)
    return replace(config, **{section: replace(getattr(config, section), **keys) for section, keys in given.items()})


def find_recipe(recipe: str | Path) -> Path:
    """The recipe's path: as given, or by its name among the shipped ones (with or without `recipes/` and `.toml`)."""
    for path in (Path(recipe), RECIPES / Path(recipe).name, RECIPES / f"{Path(recipe).name}.toml"):
        if path.is_file():
            return path
    shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.toml")))
    raise ValueError(f"recipe {recipe} does not exist: give a file, or one of {shipped}")


def dotted_keys(config: Any, prefix: str = "") -> Iterator[str]:
    """All `section.key` names of a config."""
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            yield from dotted_keys(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}"


def get_key(config: RunConfig, key: str) -> Any:
    """The value of `section.key`."""
    section, name = key.split(".")
    return getattr(getattr(config, section), name)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain values, as saved beside each run."""
    return asdict(config)


def from_dict(saved: Mapping[str, Mapping[str, Any]]) -> RunConfig:
    """The config of a run.json; keys that came after the run began have their defaults.

    Raises:
        ValueError: a section or key that this version does not know.
    """
    default = RunConfig()
    known = list(dotted_keys(default))
    sections = {}
    for section, values in saved.items():
        for name in values:
            check_known(f"{section}.{name}", known, "the run's config")
        kept = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        sections[section] = replace(getattr(default, section), **kept)
    return replace(default, **sections)


def differing_keys(saved: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Keys of the experiment whose saved value is another than the config's (those of MAY_CHANGE left out).

    A key that came after the run began has its default there, which must be what was done without it.
    """
    old = dict(_flatten(to_dict(RunConfig()))) | dict(_flatten(saved))
    new = dict(_flatten(to_dict(config)))
    names = sorted(old.keys() | new.keys())
    differs = [key for key in names if _plain(old.get(key)) != _plain(new.get(key))]
    return [key for key in differs if not _may_change(key)]


def _may_change(key: str) -> bool:
    return any(key == known or (known.endswith(".") and key.startswith(known)) for known in MAY_CHANGE)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _type_of(config: RunConfig, key: str) -> Any:
    section, name = key.split(".")
    return get_type_hints(type(getattr(config, section)))[name]


def _parse_value(text: str, kind: Any) -> Any:
    if kind is str and text[:1] not in ("'", '"'):
        return text  # a folder may be called 2024 or 1e3
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _convert(key: str, value: Any, kind: Any) -> Any:
    if get_origin(kind) is tuple:
        if isinstance(value, list) and all(isinstance(item, get_args(kind)[0]) for item in value):
            return tuple(value)
    elif kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise ValueError(f"{key} is {value!r}: it must be of type {getattr(kind, '__name__', kind)}")
