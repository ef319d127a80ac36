"""Existing transformers models on this project's attention, and downstream tasks.

The only package besides trainer/ that may import transformers freely; it never imports deepspeed.
`disentangled.accelerate` and `disentangled.restore` are in accelerate.py; `python -m disentangled.finetune` is
run_command.py, `finetune(options)` from Python is in run_task.py, the table of tasks in tasks.py.
"""
