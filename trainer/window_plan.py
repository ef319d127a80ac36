"""The rows of a split at one sequence length: computed once from the documents' lengths, kept as an Arrow file.

What: the rows of all shards, one after another, as flat arrays; 8 bytes a row, 6 a piece. The file lies in the
dataset's folder `plans` and is mapped into memory, so a run starts at once however large the dataset is, and the
processes of a node share it. Where it cannot be written (a read-only dataset) the plan is computed at every start. For
a remote store it is made before the upload (trainer/plan.py): computing it there would fetch every shard.
Used by: trainer/shards.py, plan.py. Tested by: tests/trainer/test_window_plan.py.
Not here: how pieces are packed (packing.py).
"""

import contextlib
import functools
import json
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from disentangled.data_prep.arrow_numpy import to_arrow, to_numpy
from disentangled.data_prep.shard_schema import ShardRecord
from disentangled.data_prep.whole_file import create_file
from disentangled.trainer.dataset import Dataset
from disentangled.trainer.packing import PackedWindows, Packing, pack_windows

PLAN_VERSION = 1  # another packing of the same documents is another version


@dataclass(frozen=True)
class PlanKey:
    """All that decides a plan."""

    dataset_id: str
    split: str
    sequence_length: int
    minimum_piece_tokens: int
    packing: Packing
    version: int = PLAN_VERSION

    @property
    def name(self) -> str:
        """The plan's file name."""
        return f"{self.split}-{self.packing}-{self.sequence_length}-{self.minimum_piece_tokens}.arrow"


@dataclass(frozen=True)
class WindowPlan:
    """All rows of a split, in shard order: row w holds pieces first_piece[w] .. first_piece[w + 1] - 1.

    Attributes:
        shard_windows: [shards] int64, rows of each shard.
        first_piece: [windows + 1] int64.
        start: [pieces] uint32, where a piece starts in its shard's tokens.
        length: [pieces] uint16 or uint32, its tokens, special ones not counted.
    """

    shard_windows: NDArray[np.int64]
    first_piece: NDArray[np.int64]
    start: NDArray[Any]
    length: NDArray[Any]

    @property
    def num_windows(self) -> int:
        """Rows of all shards."""
        return self.first_piece.size - 1


def join_windows(shards: Iterable[PackedWindows], sequence_length: int) -> WindowPlan:
    """The plan of a split from the rows of its shards."""
    rows = list(shards)
    pieces = np.cumsum([0] + [shard.start.size for shard in rows])
    firsts = [shard.first_piece[:-1] + first for shard, first in zip(rows, pieces, strict=False)]
    length_type = np.uint16 if sequence_length <= np.iinfo(np.uint16).max else np.uint32
    return WindowPlan(
        shard_windows=np.array([shard.num_windows for shard in rows], dtype=np.int64),
        first_piece=np.concatenate([*firsts, pieces[-1:]]).astype(np.int64),
        start=np.concatenate([np.empty(0, np.uint32), *(shard.start for shard in rows)]).astype(np.uint32),
        length=np.concatenate([np.empty(0, length_type), *(shard.length for shard in rows)]).astype(length_type),
    )


def load_or_compute_plan(dataset: Dataset, key: PlanKey, num_processes: int = 1) -> WindowPlan:
    """The plan as kept beside the dataset, else computed, and kept where that is possible."""
    path = dataset.fetch_plan(key.name)
    plan = read_plan(path, key)
    if plan is None:
        plan = compute_plan(dataset, key, num_processes)
        with contextlib.suppress(OSError):  # a read-only or full disk: the next start computes it again
            write_plan(path, plan, key)
    return plan


def compute_plan(dataset: Dataset, key: PlanKey, num_processes: int = 1) -> WindowPlan:
    """Pack every shard of a split; reads the documents' lengths and no tokens."""
    records = dataset.manifest.splits[key.split]
    pack = functools.partial(_pack_shard, dataset, key)
    if num_processes == 1:
        return join_windows(map(pack, records), key.sequence_length)
    with ProcessPoolExecutor(num_processes) as pool:
        return join_windows(pool.map(pack, records), key.sequence_length)


def _pack_shard(dataset: Dataset, key: PlanKey, record: ShardRecord) -> PackedWindows:
    offsets = dataset.open(record, "quick").offsets
    return pack_windows(offsets, key.sequence_length, key.minimum_piece_tokens, key.packing)


def write_plan(path: Path, plan: WindowPlan, key: PlanKey) -> None:
    """Write a plan, whole or not at all; equal plans give equal bytes."""
    pieces = pa.StructArray.from_arrays([to_arrow(plan.start), to_arrow(plan.length)], names=["start", "length"])
    rows = pa.LargeListArray.from_arrays(to_arrow(plan.first_piece), pieces)
    metadata = {
        "key": json.dumps(asdict(key), sort_keys=True),
        "shard_windows": json.dumps(plan.shard_windows.tolist()),
        "xxh3_128": _checksum(plan),
    }
    batch = pa.record_batch([rows], schema=pa.schema([pa.field("pieces", rows.type)], metadata=metadata))
    path.parent.mkdir(exist_ok=True)
    with create_file(path) as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write_batch(batch)


def read_plan(path: Path, key: PlanKey) -> WindowPlan | None:
    """A kept plan, mapped into memory; None where there is none, or a damaged one, or one of another dataset."""
    try:
        with pa.ipc.open_file(pa.memory_map(str(path))) as reader:
            metadata = {name.decode(): value.decode() for name, value in (reader.schema.metadata or {}).items()}
            rows = reader.get_batch(0).column("pieces")
        if json.loads(metadata["key"]) != asdict(key):
            return None
        plan = WindowPlan(
            shard_windows=np.array(json.loads(metadata["shard_windows"]), dtype=np.int64),
            first_piece=to_numpy(rows.offsets),
            start=to_numpy(rows.values.field("start")),
            length=to_numpy(rows.values.field("length")),
        )
        return plan if _checksum(plan) == metadata["xxh3_128"] else None
    except (OSError, pa.ArrowException, KeyError, ValueError):
        return None


def _checksum(plan: WindowPlan) -> str:
    hasher = xxhash.xxh3_128()
    for column in (plan.shard_windows, plan.first_piece, plan.start, plan.length):
        hasher.update(np.ascontiguousarray(column).data)
    return hasher.hexdigest()
