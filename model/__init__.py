"""DeBERTaV3 in plain torch: the generator and discriminator of arXiv 2111.09543.

Imports torch and `disentangled.kernels` only. `hf_checkpoint.py` alone may import transformers.
"""
