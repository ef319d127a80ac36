"""A recipe's sections: their keys, defaults and rules.

What: one frozen dataclass a section, checked when it is made. What ties sections together is RunConfig's to check.
Used by: trainer/run_config.py and the modules that a section configures. Tested by tests/trainer/test_run_config.py.
Not here: the model's own keys (model/config.py), the schedule's (schedule.py).
"""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Any, cast

from disentangled.model.config import DebertaConfig, generator_config
from disentangled.trainer.masking import MASKING_UNITS, MaskingRule, MaskingUnit
from disentangled.trainer.packing import PACKINGS

UPDATES = ("decoupled", "joint", "mlm")
OPTIMIZERS = ("adamw", "stable_adamw")


@dataclass(frozen=True)
class ModelSection(DebertaConfig):
    """The discriminator's architecture and what the pair adds to it."""

    vocab_size: int = 0  # 0: the shards' own
    generator_num_hidden_layers: int = 6
    embedding_sharing: str = "gdes"

    def __post_init__(self) -> None:
        check_least("model", self, 1, "generator_num_hidden_layers")
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

    def __post_init__(self) -> None:
        check_least("data", self, 1, "sequence_length", "minimum_piece_tokens")
        check_least("data", self, 0, "mixture_alpha", "max_epochs", "shuffle_block_shards", "workers", "cache_bytes")
        check_choice("data", self, "packing", PACKINGS)


@dataclass(frozen=True)
class MaskingSection:
    """Which tokens the generator must predict."""

    probability: float = 0.15
    unit: str = "token"  # or word, span, windowed_legacy: see trainer/masking.py
    max_span_words: int = 10
    mask_share: float = 1.0  # of the chosen tokens become [MASK]
    random_share: float = 0.0  # become another piece; the rest stay as they are

    def __post_init__(self) -> None:
        check_between("masking", self, "probability")
        check_least("masking", self, 1, "max_span_words")
        check_choice("masking", self, "unit", MASKING_UNITS)
        if min(self.mask_share, self.random_share) < 0 or self.mask_share + self.random_share > 1:
            raise ValueError(
                f"masking.mask_share {self.mask_share} and masking.random_share {self.random_share}: neither may be "
                "negative, nor their sum above 1"
            )

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
    first_sequences: int = 0  # of the first update; the rise to global_sequences takes rise_steps. 0: no warm-up
    rise_steps: int = 0

    def __post_init__(self) -> None:
        check_least("batch", self, 1, "global_sequences", "micro_sequences")
        check_least("batch", self, 0, "first_sequences", "rise_steps")
        if bool(self.first_sequences) != bool(self.rise_steps):
            raise ValueError(
                f"batch.first_sequences is {self.first_sequences} and batch.rise_steps {self.rise_steps}: a "
                "warm-up needs both, none needs neither"
            )
        if self.first_sequences and (
            self.global_sequences % self.first_sequences or self.first_sequences == self.global_sequences
        ):
            raise ValueError(
                f"batch.first_sequences is {self.first_sequences}: it must be a half, a third or another whole part of "
                f"batch.global_sequences ({self.global_sequences})"
            )


@dataclass(frozen=True)
class MachineSection:
    """How a machine computes what the rest of the recipe says: another launch of the run may change it.

    recompute_*: activation checkpointing, a forward pass more for a layer's activations; no bit of the results differs.
    compile_*: torch.compile of the layers, on a CPU of what surrounds attention in them; results differ by rounding.
        Not at ZeRO stage 3.
    """

    recompute_generator: bool = False
    recompute_discriminator: bool = False
    compile_generator: bool = False
    compile_discriminator: bool = False


@dataclass(frozen=True)
class OptimizerSection:
    """One optimizer a model, alike but for their rates (arXiv 2111.09543, table 10)."""

    kind: str = "adamw"  # or stable_adamw, or the dotted path of a class of an installed library
    bias_correction: bool = True  # of adamw and stable_adamw; the original code has none
    options: tuple[str, ...] = ()  # further arguments of a library's class, as "name=value"
    learning_rate: float = 6e-4
    discriminator_learning_rate: float = 0.0  # 0: the same as learning_rate
    beta1: float = 0.9
    beta2: float = 0.98
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    gradient_clipping: float = 1.0  # per model; 0 switches it off
    rtd_lambda: float = 50.0
    update: str = "decoupled"  # the generator first, as in the paper; joint, or mlm: see trainer/rtd_step.py

    def __post_init__(self) -> None:
        check_between("optimizer", self, "beta1", "beta2")
        check_choice("optimizer", self, "update", UPDATES)
        if "." not in self.kind:
            check_choice("optimizer", self, "kind", (*OPTIMIZERS, "a dotted path such as torch.optim.RAdam"))
            if self.options:
                raise ValueError(f"optimizer.options is {list(self.options)}: only a library's class takes options")
        elif not self.bias_correction:
            raise ValueError(f"optimizer.bias_correction is false: only {' and '.join(OPTIMIZERS)} have the choice")
        for name in ("learning_rate", "rtd_lambda", "epsilon"):
            if getattr(self, name) <= 0:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}: it must be above 0")
        check_least("optimizer", self, 0, "discriminator_learning_rate", "weight_decay", "gradient_clipping")


@dataclass(frozen=True)
class LogSection:
    """How often a line is written."""

    every_steps: int = 100
    tensorboard: bool = True
    wandb: bool = False  # needs the extra disentangled[wandb]; its own variables (WANDB_MODE, ...) say where to

    def __post_init__(self) -> None:
        check_least("log", self, 1, "every_steps")


@dataclass(frozen=True)
class EvaluateSection:
    """Held-out evaluation of both models; 0 steps: only at the end."""

    every_steps: int = 0
    num_sequences: int = 1024

    def __post_init__(self) -> None:
        check_least("evaluate", self, 0, "every_steps")
        check_least("evaluate", self, 1, "num_sequences")


@dataclass(frozen=True)
class CheckpointSection:
    """0 steps: only at the end and on a signal."""

    every_steps: int = 0
    keep_last: int = 2  # newest checkpoints kept; at least 1
    keep_every_steps: int = 0  # those of steps that it divides are kept as well; 0: none
    in_background: bool = True  # training goes on while a copy of the state is written

    def __post_init__(self) -> None:
        check_least("checkpoint", self, 0, "every_steps", "keep_every_steps")
        check_least("checkpoint", self, 1, "keep_last")


@dataclass(frozen=True)
class FaultsSection:
    """What a run does about bad updates and hung ranks."""

    spike_factor: float = 20.0  # a gradient norm so many times its running mean is refused; 0: no finite one is
    rollback_after: int = 10  # refused updates in a row: go back to a checkpoint, pass their samples over; 0: never
    most_rollbacks: int = 3  # then the run ends
    hang_seconds: float = 1800.0  # a rank that makes no progress for so long ends; 0: never

    def __post_init__(self) -> None:
        check_least("faults", self, 0, "spike_factor", "rollback_after", "most_rollbacks", "hang_seconds")


@dataclass(frozen=True)
class ContinueSection:
    """Weights that a new run begins with: trainer/continue_from.py. A resumed run does not read them again."""

    checkpoint: str = ""  # a folder or a weight file; empty: random initial weights
    generator: str = ""  # the generator's folder or weight file, where it is not found beside the checkpoint
    tokenizer: str = ""  # the checkpoint's spm.model, where it is not beside it; "shards": its ids are the shards' ids
    generator_init: str = "copy"  # where no generator is given: "copy" the discriminator's first layers, or "random"
    generator_warmup_steps: int = 0  # the first steps of the run, in which the generator trains alone

    def __post_init__(self) -> None:
        check_choice("continue_from", self, "generator_init", ("copy", "random"))
        check_least("continue_from", self, 0, "generator_warmup_steps")
        if not self.checkpoint:
            for entry in fields(self):
                if getattr(self, entry.name) != entry.default:
                    raise ValueError(
                        f"continue_from.{entry.name} is set without continue_from.checkpoint: "
                        "add continue_from.checkpoint=DIR, or leave both out"
                    )


@dataclass(frozen=True)
class RunSection:
    """Where results go, and the seed of all random numbers."""

    dir: str = ""
    seed: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"run.seed is {self.seed}: it must lie between 0 and 2^63 - 1")


def check_least(section: str, values: Any, least: int, *names: str) -> None:
    """Raise ValueError for the first of the keys that is below `least`, 0 or 1."""
    for name in names:
        if getattr(values, name) < least:
            rule = "not be negative" if least == 0 else f"be at least {least}"
            raise ValueError(f"{section}.{name} is {getattr(values, name)}: it must {rule}")


def check_between(section: str, values: Any, *names: str) -> None:
    """Raise ValueError for the first of the keys that does not lie between 0 and 1."""
    for name in names:
        if not 0 < getattr(values, name) < 1:
            raise ValueError(f"{section}.{name} is {getattr(values, name)}: it must lie between 0 and 1")


def check_choice(section: str, values: Any, name: str, known: Collection[str]) -> None:
    """Raise ValueError where the key is none of `known`."""
    if getattr(values, name) not in known:
        raise ValueError(f"{section}.{name} is {getattr(values, name)!r}: it must be one of {', '.join(known)}")
