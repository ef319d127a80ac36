"""Pre-training of DeBERTaV3-style encoders: text in, an encoder that Hugging Face loads out.

The one import root. `disentangled.kernels`, `.model`, `.trainer`, `.data_prep` and `.finetune` are symlinks to the
folders of the same names at the top of the repository, `recipes` and `ds_configs` to its configuration files, so that
nothing named `kernels` or `model` ever reaches site-packages (docs/decisions/0001-import-root.md). Importing this
package imports nothing else: no torch, no DeepSpeed; `accelerate` and `restore` are imported when they are first used.

`__version__` is the single source of the version; setup.py reads it as text. Tested by tests/house/. Not here: any
code; it lives in the folders.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from disentangled.finetune.accelerate import accelerate, restore

__all__ = ["__version__", "accelerate", "restore"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name not in ("accelerate", "restore"):
        raise AttributeError(f"module 'disentangled' has no attribute {name!r}")
    from disentangled.finetune import accelerate

    return getattr(accelerate, name)
