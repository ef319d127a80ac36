"""How Megatron-LM is imported from a clone, which is never installed.

Used by: preparers.py, readers.py, maskers.py, integrity.py. Not here: any of its code.
"""

import sys
import typing
import warnings
from pathlib import Path


def import_from(source: Path) -> None:
    """Put the clone before all other packages. It imports typing.override, all that Python 3.11 lacks of its needs."""
    if not (source / "megatron").is_dir():
        raise ModuleNotFoundError(f"{source} holds no folder megatron")
    if str(source) not in sys.path:
        sys.path.insert(0, str(source))
    if not hasattr(typing, "override"):
        import typing_extensions

        typing.override = typing_extensions.override  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", module="megatron")
