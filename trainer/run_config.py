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
from typing import Any, cast, get_args, get_origin, get_type_hints

from disentangled.model.config import DebertaConfig, generator_config
from disentangled.trainer.key_owners import check_recipe_key
from disentangled.trainer.masking import MASKING_UNITS, MaskingRule, MaskingUnit
from disentangled.trainer.packing import PACKINGS
from disentangled.trainer.schedule import SCHEDULES, ScheduleSection

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
# what a later launch of the same run may change: where it runs and what it reports, never what it computes
MAY_CHANGE = (
    "run.dir",
    "data.shards",
    "data.workers",
    "data.cache",
    "batch.micro_sequences",
    "log.",
    "evaluate.",
    "checkpoint.",
)


@dataclass(frozen=True)
class ModelSection(DebertaConfig):
    """The discriminator's architecture and what the pair adds to it."""

    vocab_size: int = 0  # 0: the shards' own
    generator_num_hidden_layers: int = 6
    embedding_sharing: str = "gdes"

    def __post_init__(self) -> None:
        if self.vocab_size:
            super().__post_init__()
        else:
            replace(self, vocab_size=1)  # checks all other keys
            object.__setattr__(self, "pos_att_type", tuple(self.pos_att_type))

    def discriminator(self, vocab_size: int) -> DebertaConfig:
        """The discriminator's config for shards with `vocab_size` ids."""
        known = {entry.name: getattr(self, entry.name) for entry in fields(DebertaConfig)}
        return DebertaConfig(**known | {"vocab_size": self.vocab_size or vocab_size})

    def generator(self, vocab_size: int) -> DebertaConfig:
        """The generator's config: the same at its own depth."""
        return generator_config(self.discriminator(vocab_size), self.generator_num_hidden_layers)


@dataclass(frozen=True)
class DataSection:
    """Where the shards are and how documents are cut."""

    shards: str = ""
    sequence_length: int = 512  # tokens of a row, [CLS] and [SEP] included
    minimum_piece_tokens: int = 8  # shorter leftovers of a long document are dropped
    packing: str = "best_fit"  # or concatenate, one_piece: see trainer/packing.py
    mixture_alpha: float = 1.0  # a source's share is weight * tokens^alpha; 0.3 draws small languages more often
    max_epochs: float = 0.0  # no source is seen more often; 0: no cap
    shuffle_block_shards: int = 0  # rows of so many shards are shuffled together; 0: of all
    cache: str = ""  # where shards of a remote store are kept; empty: ~/.cache/disentangled
    cache_bytes: int = 0  # they take no more than this; 0: no limit
    workers: int = 1  # processes that build batches for a rank; 0: the rank itself


@dataclass(frozen=True)
class MaskingSection:
    """Which tokens the generator must predict."""

    probability: float = 0.15
    unit: str = "token"  # or word, span, windowed_legacy: see trainer/masking.py
    max_span_words: int = 10
    mask_share: float = 1.0  # of the chosen tokens become [MASK]
    random_share: float = 0.0  # become another piece; the rest stay as they are

    def rule(self) -> MaskingRule:
        """What trainer/masking.py goes by."""
        return MaskingRule(
            self.probability, cast(MaskingUnit, self.unit), self.max_span_words, self.mask_share, self.random_share
        )


@dataclass(frozen=True)
class BatchSection:
    """global_sequences belongs to the experiment, micro_sequences to the machine; accumulation follows from both."""

    global_sequences: int = 256
    micro_sequences: int = 32  # rows of one forward pass on one rank


@dataclass(frozen=True)
class OptimizerSection:
    """AdamW for both models (arXiv 2111.09543, table 10)."""

    learning_rate: float = 6e-4
    discriminator_learning_rate: float = 0.0  # 0: the same as learning_rate
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    gradient_clipping: float = 1.0  # per model; 0 switches it off
    rtd_lambda: float = 50.0


@dataclass(frozen=True)
class LogSection:
    """How often a line is written."""

    every_steps: int = 100
    tensorboard: bool = True


@dataclass(frozen=True)
class EvaluateSection:
    """Held-out evaluation of both models; 0 steps: only at the end."""

    every_steps: int = 0
    num_sequences: int = 1024


@dataclass(frozen=True)
class CheckpointSection:
    """0 steps: only at the end and on a signal."""

    every_steps: int = 0
    keep: int = 2  # newest checkpoints kept; at least 1


@dataclass(frozen=True)
class RunSection:
    """Where results go, and the seed of all random numbers."""

    dir: str = ""
    seed: int = 1


@dataclass(frozen=True)
class RunConfig:
    """Everything that defines a run."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    masking: MaskingSection = field(default_factory=MaskingSection)
    batch: BatchSection = field(default_factory=BatchSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    log: LogSection = field(default_factory=LogSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        at_least_one = (
            "data.sequence_length", "data.minimum_piece_tokens", "batch.global_sequences", "batch.micro_sequences",
            "schedule.total_steps", "log.every_steps", "evaluate.num_sequences", "checkpoint.keep",
            "model.generator_num_hidden_layers", "masking.max_span_words",
        )  # fmt: skip
        for key in at_least_one:
            if get_key(self, key) < 1:
                raise ValueError(f"{key} is {get_key(self, key)}: it must be at least 1")
        for key in ("optimizer.learning_rate", "optimizer.rtd_lambda", "optimizer.epsilon"):
            if get_key(self, key) <= 0:
                raise ValueError(f"{key} is {get_key(self, key)}: it must be above 0")
        for key in (
            "data.mixture_alpha",
            "data.max_epochs",
            "data.shuffle_block_shards",
            "data.workers",
            "data.cache_bytes",
        ):
            if get_key(self, key) < 0:
                raise ValueError(f"{key} is {get_key(self, key)}: it must not be negative")
        for key, known in (("data.packing", PACKINGS), ("masking.unit", MASKING_UNITS), ("schedule.kind", SCHEDULES)):
            if get_key(self, key) not in known:
                raise ValueError(f"{key} is {get_key(self, key)!r}: it must be one of {', '.join(known)}")
        mask_share, random_share = self.masking.mask_share, self.masking.random_share
        if min(mask_share, random_share) < 0 or mask_share + random_share > 1:
            raise ValueError(
                f"masking.mask_share {mask_share} and masking.random_share {random_share}: neither may be negative, "
                "nor their sum above 1"
            )
        for key in ("masking.probability", "optimizer.beta1", "optimizer.beta2"):
            if not 0 < get_key(self, key) < 1:
                raise ValueError(f"{key} is {get_key(self, key)}: it must lie between 0 and 1")
        if not 0 <= self.schedule.warmup_steps <= self.schedule.total_steps:
            raise ValueError(
                f"schedule.warmup_steps is {self.schedule.warmup_steps}: it must lie between 0 and "
                f"schedule.total_steps ({self.schedule.total_steps})"
            )
        if not 0 <= self.schedule.decay_steps <= self.schedule.total_steps:
            raise ValueError(
                f"schedule.decay_steps is {self.schedule.decay_steps}: it must lie between 0 and schedule.total_steps "
                f"({self.schedule.total_steps})"
            )
        if not 0 <= self.schedule.final_factor <= 1:
            raise ValueError(f"schedule.final_factor is {self.schedule.final_factor}: it must lie between 0 and 1")
        if not 4 <= self.data.sequence_length <= self.model.max_position_embeddings:
            raise ValueError(
                f"data.sequence_length is {self.data.sequence_length}: it must lie between 4 and "
                f"model.max_position_embeddings ({self.model.max_position_embeddings})"
            )
        if not 0 <= self.run.seed < 1 << 63:
            raise ValueError(f"run.seed is {self.run.seed}: it must lie between 0 and 2^63 - 1")


def accumulation_steps(batch: BatchSection, world_size: int) -> int:
    """Micro-batches that each rank runs for one global batch.

    Raises:
        ValueError: the global batch is no multiple of micro_sequences times the ranks; names the nearest that is.
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


def differing_keys(saved: Mapping[str, Any], config: RunConfig) -> list[str]:
    """Keys of the experiment whose saved value is another than the config's (those of MAY_CHANGE left out)."""
    old = dict(_flatten(saved))
    new = dict(_flatten(to_dict(config)))
    names = sorted(old.keys() | new.keys())
    differs = [key for key in names if _plain(old.get(key)) != _plain(new.get(key))]
    return [key for key in differs if not key.startswith(MAY_CHANGE)]


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
