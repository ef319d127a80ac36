"""Single definitions out of a rival's source file, where importing the file itself would need packages of its time.

DeBERTa's masker stands in a file that imports its whole trainer, ModernBERT's packer in one that imports composer.
They are compiled as they stand, from the clone, with the few names that they use; annotations are not evaluated.

Used by: maskers.py, readers.py, packing.py. Tested by: tests/benchmarks/test_data.py.
"""

import __future__

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def lift_definitions(path: Path, names: set[str], known: dict[str, Any]) -> SimpleNamespace:
    """The named functions and classes of a file, compiled with `known` as their globals."""
    if not path.is_file():
        raise ModuleNotFoundError(f"{path} is not there")
    tree = ast.parse(path.read_text("utf-8"))
    kept = [
        node
        for node in tree.body
        if (isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names)
        or (isinstance(node, ast.Assign) and any(isinstance(to, ast.Name) and to.id in names for to in node.targets))
    ]
    tree.body = kept
    flags = __future__.annotations.compiler_flag
    scope = dict(known) | {"__name__": f"lifted_{path.stem}"}
    exec(compile(tree, str(path), "exec", flags=flags, dont_inherit=True), scope)
    missing = names - scope.keys()
    if missing:
        raise ModuleNotFoundError(f"{path} defines no {', '.join(sorted(missing))}")
    return SimpleNamespace(**{name: scope[name] for name in names})


def lift_modernbert(clone: Path) -> SimpleNamespace:
    """SequencePacker, GreedyBestFitSequencePacker and NoStreamingDataset."""
    import collections
    import json
    import os
    from abc import ABC, abstractmethod
    from typing import Generic, NamedTuple, TypeVar

    import numpy as np
    import torch
    from numba import njit
    from streaming.base.format import reader_from_json
    from streaming.base.spanner import Spanner

    known = {
        "ABC": ABC, "abstractmethod": abstractmethod, "NamedTuple": NamedTuple, "Generic": Generic, "TypeVar": TypeVar,
        "np": np, "torch": torch, "njit": njit, "deque": collections.deque,
    }  # fmt: skip
    packer = lift_definitions(
        clone / "src" / "sequence_packer.py",
        {"SequencePackerBatchOutputTuple", "SequencePacker", "find_best_fit", "GreedyBestFitSequencePacker"},
        known,
    )
    known = {"np": np, "os": os, "json": json, "Dataset": torch.utils.data.Dataset, "Spanner": Spanner}
    reader = lift_definitions(
        clone / "src" / "text_data.py", {"NoStreamingDataset"}, known | {"reader_from_json": reader_from_json}
    )
    return SimpleNamespace(**vars(packer), **vars(reader))
