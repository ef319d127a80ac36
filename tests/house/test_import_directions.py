"""Imports run one way, through the one root: every .py file is parsed and each of its imports held against the rules
below.

    data_prep.{shard_schema, input_store,        <---+
      whole_file, arrow_numpy}                      |
    torch, triton <-- kernels <-- model <-- trainer --> deepspeed
                         ^----------^---- finetune --> transformers

Why: a module imported by its bare folder name exists twice, and a room that reaches into another one cannot be
understood alone (docs/decisions/0001-import-root.md). Not here: whether the imports succeed (test_wheel.py), and what
is declared in setup.py (test_dependencies.py).
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("kernels", "model", "trainer", "data_prep", "finetune", "benchmarks", "experiments", "tests", "disentangled")
OUTER = ("tests", "benchmarks", "experiments")  # what users do not install
NEVER_BARE = ("kernels", "model", "trainer", "data_prep", "finetune", "recipes", "ds_configs")


@dataclass(frozen=True)
class Rule:
    """What the files of a folder may import. `None` for third_party: anything that is not in `forbidden`."""

    ours: tuple[str, ...]
    third_party: tuple[str, ...] | None = None
    forbidden: tuple[str, ...] = ()


RULES = {
    "disentangled": Rule(ours=("disentangled",), third_party=()),
    "kernels": Rule(ours=("disentangled.kernels",), third_party=("torch", "triton")),
    "model": Rule(ours=("disentangled.model", "disentangled.kernels"), third_party=("torch",)),
    "model/hf_checkpoint.py": Rule(
        ours=("disentangled.model", "disentangled.kernels"), third_party=("torch", "transformers", "safetensors")
    ),
    "trainer": Rule(
        ours=(
            "disentangled.__version__",
            "disentangled.kernels",
            "disentangled.model",
            "disentangled.trainer",
            "disentangled.data_prep.shard_schema",
            "disentangled.data_prep.input_store",
            "disentangled.data_prep.whole_file",
            "disentangled.data_prep.arrow_numpy",
        ),
        forbidden=OUTER,
    ),
    "finetune": Rule(
        ours=("disentangled.__version__", "disentangled.kernels", "disentangled.model", "disentangled.finetune"),
        forbidden=OUTER,
    ),
    "data_prep": Rule(
        ours=("disentangled.__version__", "disentangled.data_prep"),
        forbidden=("torch", "triton", "deepspeed", "transformers", *OUTER),
    ),
    **{folder: Rule(ours=("disentangled", *OUTER)) for folder in OUTER},
}


def source_files() -> list[Path]:
    """Every Python file of ours, under its real path, relative to the root."""
    found = [path for folder in FOLDERS if folder != "disentangled" for path in (ROOT / folder).rglob("*.py")]
    return [path.relative_to(ROOT) for path in [*found, ROOT / "disentangled/__init__.py"]]


def rule_of(path: Path) -> Rule:
    """The rule of the file itself where it has one, else its folder's."""
    return RULES.get(path.as_posix()) or RULES[path.parts[0]]


def imported_names(source: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import; `from a import b` gives `a.b`, a relative import begins with a dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if function in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def find_breaches(path: Path, source: str) -> list[str]:
    """One line for each import of the file that breaks its rule."""
    rule = rule_of(path)
    breaches = []
    for line, name in imported_names(source):
        top = name.split(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if name.startswith("."):
            breaches.append(f"{path}:{line} imports {name} relatively; write disentangled.<folder>...")
        elif top in NEVER_BARE:
            breaches.append(f"{path}:{line} imports {name} by its bare name; write disentangled.{name}")
        elif top in ("disentangled", *OUTER):
            if not is_within(name, rule.ours):
                breaches.append(f"{path}:{line} imports {name}; of ours it may import {', '.join(rule.ours)}")
        elif top in rule.forbidden or (rule.third_party is not None and top not in rule.third_party):
            breaches.append(f"{path}:{line} imports {name}, which {path.parts[0]}/ must not")
        elif top == "deepspeed" and path.parts[0] not in ("trainer", *OUTER):
            breaches.append(f"{path}:{line} imports {name}; only trainer/ may")
    return breaches


def test_imports_of_every_file_follow_the_rules() -> None:
    files = source_files()
    assert len(files) > 10
    breaches = [breach for path in files for breach in find_breaches(path, (ROOT / path).read_text("utf-8"))]
    assert not breaches, "\n".join(breaches)


def test_every_linked_code_folder_has_a_rule() -> None:
    linked = {link.name for link in (ROOT / "disentangled").iterdir() if link.is_symlink()} - {"recipes", "ds_configs"}
    assert linked <= RULES.keys()
    assert linked <= set(FOLDERS)


@pytest.mark.parametrize(
    ("path", "source", "is_breach"),
    [
        ("model/encoder.py", "from disentangled.kernels.counter_rng import Stream", False),
        ("model/encoder.py", "from kernels.counter_rng import Stream", True),
        ("model/encoder.py", "from .layer import Layer", True),
        ("model/encoder.py", "from disentangled import trainer", True),
        ("model/encoder.py", "import pyarrow", True),
        ("model/encoder.py", "def f():\n    import deepspeed", True),
        ("model/encoder.py", "import transformers", True),
        ("model/hf_checkpoint.py", "import transformers", False),
        ("kernels/counter_rng.py", "import numpy", True),
        ("kernels/counter_rng.py", "from disentangled.model import config", True),
        ("data_prep/split.py", "import torch.nn", True),
        ("data_prep/split.py", "import xxhash", False),
        ("data_prep/split.py", "import deepspeed", True),
        ("data_prep/split.py", "from disentangled.trainer.shards import x", True),
        ("trainer/shards.py", "from disentangled.data_prep.shard_schema import load_manifest", False),
        ("trainer/shards.py", "from disentangled.data_prep import shard_schema", False),
        ("trainer/shards.py", "from disentangled.data_prep.tokenizer import x", True),
        ("trainer/shards.py", "import importlib; importlib.import_module('model.config')", True),
        ("trainer/engine.py", "import deepspeed", False),
        ("trainer/engine.py", "from tests.numerics import x", True),
        ("finetune/accelerate.py", "import transformers", False),
        ("finetune/accelerate.py", "import deepspeed", True),
        ("finetune/accelerate.py", "from disentangled.trainer import x", True),
        ("tests/model/test_layer.py", "import kernels", True),
        ("tests/model/test_layer.py", "from tests.numerics import x", False),
        ("disentangled/__init__.py", "import torch", True),
    ],
)
def test_rules_tell_right_from_wrong(path: str, source: str, is_breach: bool) -> None:
    assert bool(find_breaches(Path(path), source)) == is_breach


def test_kernels_folder_stays_a_namespace_portion() -> None:
    assert not (ROOT / "kernels/__init__.py").exists(), "delete it: it would hide Hugging Face's package kernels"


def test_import_root_holds_relative_links_to_the_top_level_folders() -> None:
    links = {link.name: link.readlink() for link in (ROOT / "disentangled").iterdir() if link.is_symlink()}
    assert {"kernels", "model", "trainer", "data_prep", "finetune", "recipes", "ds_configs"} <= links.keys()
    assert all(target == Path("..") / name for name, target in links.items())
