"""Existing transformers models on this project's attention, and downstream tasks.

The only package besides trainer/ that may import transformers freely; it never imports deepspeed.
`disentangled.accelerate` and `disentangled.restore` are in accelerate.py.
"""
