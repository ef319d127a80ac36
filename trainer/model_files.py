"""One model's state in files: a safetensors file per rank, stretches of tensors by name.

What: FOLDER/rank_00000.safetensors and so on. A tensor `kind/name` is a stretch [n] of the flattened fp32 weight (kind
`fp32`) or of a moment (kind as the optimizer calls it, such as `exp_avg`) of parameter `name`; where it begins is in
the file's metadata, `starts`. Together the files hold each element once, so any number of ranks reads what any other
number wrote. No pickled objects: reading runs no code.
Used by: trainer/engine_state.py, trainer/export.py. Tested by tests/trainer/test_model_files.py.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

WEIGHT = "fp32"


class Stretch(NamedTuple):
    """`num_elements` of a flattened tensor from `start` on, and the open file that holds them."""

    start: int
    num_elements: int
    file: Any


def rank_file(rank: int) -> str:
    """The file name of what a rank wrote."""
    return f"rank_{rank:05}.safetensors"


def tensor_name(kind: str, name: str) -> str:
    """The name of a parameter's weight or moment inside the files."""
    return f"{kind}/{name}"


def write_rank_file(path: Path, tensors: Mapping[str, Tensor], starts: Mapping[str, int]) -> None:
    """Write one rank's stretches, by tensor_name.

    Raises:
        OSError: the file could not be written, for instance because the disk is full.
    """
    try:
        save_file(dict(tensors), path, metadata={"starts": json.dumps(dict(starts))})
    except SafetensorError as error:
        raise OSError(f"{path} could not be written: {error}") from error


class ModelFiles:
    """Reads what the ranks of some run wrote.

    Raises:
        ValueError: the folder has no files of ours, or one is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stretches: dict[str, list[Stretch]] = {}
        paths = sorted(folder.glob("rank_*.safetensors"))
        if not paths:
            raise ValueError(f"{folder} holds no rank_*.safetensors: give a model's folder of a checkpoint")
        for path in paths:
            try:
                file = safe_open(path, "pt")
                starts = json.loads(file.metadata()["starts"])
                for key in file.keys():  # noqa: SIM118 (no mapping)
                    num_elements = file.get_slice(key).get_shape()[0]
                    self._stretches.setdefault(key, []).append(Stretch(starts[key], num_elements, file))
            except (SafetensorError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is damaged ({error}): use another checkpoint") from error

    def kinds(self) -> set[str]:
        """`fp32` and the names of the moments."""
        return {key.partition("/")[0] for key in self._stretches}

    def names(self) -> list[str]:
        """Of all parameters, in order of the alphabet."""
        return sorted(key.partition("/")[2] for key in self._stretches if key.startswith(f"{WEIGHT}/"))

    def read(self, kind: str, name: str, start: int, num_elements: int) -> Tensor:
        """Elements start .. start + num_elements - 1 of a flattened tensor, [num_elements] fp32.

        Raises:
            ValueError: the files lack some of them.
        """
        values = torch.empty(num_elements)
        found = 0
        for stretch in self._stretches.get(tensor_name(kind, name), ()):
            first = max(start, stretch.start)
            stop = min(start + num_elements, stretch.start + stretch.num_elements)
            if first < stop:
                part = stretch.file.get_slice(tensor_name(kind, name))[first - stretch.start : stop - stretch.start]
                values[first - start : stop - start] = part
                found += stop - first
        if found != num_elements:
            raise ValueError(
                f"{self._folder} holds {found:,} of the {num_elements:,} elements of {tensor_name(kind, name)} that "
                "are needed: it is of another model, or not whole; use another checkpoint"
            )
        return values

    def read_weight(self, name: str, shape: list[int]) -> Tensor:
        """A parameter's whole fp32 weight."""
        return self.read(WEIGHT, name, 0, torch.Size(shape).numel()).view(shape)
