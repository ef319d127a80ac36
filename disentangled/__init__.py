"""Pre-training of DeBERTaV3-style encoders: text in, an encoder that Hugging Face loads out.

The one import root. `disentangled.kernels`, `.model`, `.trainer` and `.data_prep` are symlinks to the folders of the
same names at the top of the repository, `recipes` and `ds_configs` to its configuration files, so that nothing named
`kernels` or `model` ever reaches site-packages (docs/decisions/0001-import-root.md). Importing this package imports
nothing else: no torch, no DeepSpeed.

`__version__` is the single source of the version; setup.py reads it as text. Tested by tests/house/. Not here: any
code; it lives in the folders.
"""

__version__ = "0.1.0"
