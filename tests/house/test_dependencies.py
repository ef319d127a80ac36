"""What the sources import is declared in setup.py, and what is declared is pinned in constraints.txt, within its range.

Not here: whether the pins resolve, with a CPU torch and with the CUDA one; that is tried when they are renewed
(constraints.txt).
"""

import ast
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.house.test_import_directions import imported_names

ROOT = Path(__file__).resolve().parents[2]
SOURCE_FOLDERS = ("kernels", "model", "trainer", "data_prep", "finetune")


def read_requirements(variable: str) -> dict[str, Requirement]:
    """The requirements that setup.py lists under this name, by canonical name of the distribution."""
    for node in ast.parse((ROOT / "setup.py").read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == variable:
            listed = [Requirement(text) for text in ast.literal_eval(node.value)]
            return {canonicalize_name(requirement.name): requirement for requirement in listed}
    raise AssertionError(f"setup.py has no {variable}")


def read_pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


def test_every_third_party_import_is_declared() -> None:
    lists = ("REQUIREMENTS", "FINETUNE_REQUIREMENTS", "WANDB_REQUIREMENTS")
    declared = {name: requirement for listed in lists for name, requirement in read_requirements(listed).items()}
    distributions = packages_distributions()
    undeclared = []
    for path in (path for folder in SOURCE_FOLDERS for path in (ROOT / folder).rglob("*.py")):
        for line, name in imported_names(path.read_text("utf-8")):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top == "disentangled":
                continue
            owners = {canonicalize_name(owner) for owner in distributions.get(top, [top])}
            if not owners & declared.keys():
                undeclared.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    assert not undeclared, "\n".join(undeclared)


def test_every_declared_dependency_is_pinned_within_its_range() -> None:
    pins = read_pins()
    for listed in ("REQUIREMENTS", "FINETUNE_REQUIREMENTS", "TEST_REQUIREMENTS"):
        for name, requirement in read_requirements(listed).items():
            assert name in pins, f"{name} is in setup.py and not in constraints.txt"
            assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is not within {requirement}"


def test_pins_are_plain_versions() -> None:
    # +cpu and the like exist on the machine the file was renewed on only; the registry has no local versions
    for name, version in read_pins().items():
        assert re.fullmatch(r"[0-9][0-9a-z.]*", version), f"{name}=={version}"


def test_ranges_reach_the_oldest_versions_promised() -> None:
    requirements = read_requirements("REQUIREMENTS")
    assert requirements["torch"].specifier.contains("2.11.0")
    assert requirements["triton"].specifier.contains("3.6.0")
