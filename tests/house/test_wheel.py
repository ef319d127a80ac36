"""The wheel: built by way of an sdist, unpacked away from the clone, it carries every module and configuration file and
nothing else.

Why: the sources are reached through symlinks, which a wheel must not contain, and `kernels/` is no regular package,
which a packaging tool overlooks easily. Built offline with the installed setuptools. Not here: the editable
installation (every other test runs on it).
"""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGED_FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE")
PACKAGED_FOLDERS = ("disentangled", "kernels", "model", "trainer", "data_prep", "finetune", "recipes", "ds_configs")


def run_python(*arguments: str, cwd: Path, pythonpath: Path | None = None) -> str:
    """Run this interpreter somewhere else and return what it printed; fail with all of its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if pythonpath is not None:
        environment["PYTHONPATH"] = str(pythonpath)
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build sdist, then wheel from the sdist, from a copy: a build leaves its traces in the source tree."""
    work = tmp_path_factory.mktemp("build")
    source = work / "source"
    source.mkdir()
    listed = [*PACKAGED_FILES, *PACKAGED_FOLDERS]
    subprocess.run(["cp", "-a", *(str(ROOT / name) for name in listed), str(source)], check=True)
    run_python("-m", "build", "--no-isolation", "--outdir", str(work / "dist"), str(source), cwd=work)
    (built,) = (work / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into, without its dependencies: those of this environment serve."""
    target = tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile", "--target", str(target))
    run_python(*pip, str(wheel), cwd=target)
    return target


def files_below(folder: Path, *patterns: str) -> set[str]:
    """Names of files below a top-level folder, as they should be called in the wheel."""
    found = (path for pattern in patterns for path in (ROOT / folder).rglob(pattern))
    return {f"disentangled/{path.relative_to(ROOT).as_posix()}" for path in found}


def test_wheel_holds_every_module_and_configuration(wheel: Path) -> None:
    expected = {"disentangled/__init__.py", "disentangled/py.typed"}
    for name in ("kernels", "model", "trainer", "data_prep", "finetune"):
        expected |= files_below(Path(name), "*.py", "README.md")
    expected |= files_below(Path("recipes"), "*.toml") | files_below(Path("ds_configs"), "*.json")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == expected


def test_wheel_holds_files_under_one_top_level_name(wheel: Path) -> None:
    entries = zipfile.ZipFile(wheel).infolist()
    assert {entry.filename.split("/")[0] for entry in entries if ".dist-info/" not in entry.filename} == {
        "disentangled"
    }
    is_symlink = [entry.filename for entry in entries if (entry.external_attr >> 16) & 0o170000 == 0o120000]
    assert not is_symlink


def test_installed_wheel_imports_away_from_the_clone(site: Path, tmp_path: Path) -> None:
    program = """
import sys
import disentangled, disentangled.model, disentangled.trainer, disentangled.data_prep.shard_schema
import disentangled.kernels.counter_rng, disentangled.kernels.disentangled_attention
print(*sorted({m.__file__ for n, m in sys.modules.items() if n.startswith("disentangled") and m.__file__}), sep="\\n")
"""
    paths = run_python("-c", program, cwd=tmp_path, pythonpath=site).split()
    assert len(paths) > 6
    assert all(Path(path).is_relative_to(site) for path in paths)


def test_installed_wheel_finds_recipes_and_engine_configurations(site: Path, tmp_path: Path) -> None:
    program = """
from importlib.resources import files
for folder in ("recipes", "ds_configs"):
    print(*(f"{folder}/{entry.name}" for entry in (files("disentangled") / folder).iterdir()), sep="\\n")
"""
    found = set(run_python("-c", program, cwd=tmp_path, pythonpath=site).split())
    shipped = [*(ROOT / "recipes").glob("*.toml"), *(ROOT / "ds_configs").glob("*.json")]
    assert found == {path.relative_to(ROOT).as_posix() for path in shipped}
    assert {"recipes/tiny.toml", "ds_configs/fp32_cpu.json", "ds_configs/zero2_bf16.json"} <= found


def test_installed_version_is_the_one_in_the_source(site: Path, tmp_path: Path) -> None:
    program = "import disentangled, importlib.metadata as m; print(disentangled.__version__, m.version('disentangled'))"
    imported, recorded = run_python("-c", program, cwd=tmp_path, pythonpath=site).split()
    assert imported == recorded


def test_importing_the_root_imports_nothing_heavy(site: Path, tmp_path: Path) -> None:
    program = "import sys, disentangled; print({'torch', 'deepspeed', 'numpy', 'transformers'} & set(sys.modules))"
    assert run_python("-c", program, cwd=tmp_path, pythonpath=site).strip() == "set()"
