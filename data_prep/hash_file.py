"""The digest of a whole file.

Used by: write_shards.py, open_shard.py, load_manifest.py. Tested by: tests/data_prep/test_write_shards.py.
"""

import hashlib
from pathlib import Path
from typing import Literal

import xxhash

HashAlgorithm = Literal["xxh3_128", "sha256"]


def hash_file(path: Path, algorithm: HashAlgorithm) -> str:
    """Return the hex digest of a whole file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128 if algorithm == "xxh3_128" else hashlib.sha256).hexdigest()
