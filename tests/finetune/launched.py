"""The fine-tuning command without the op that DeepSpeed compiles on CPUs: gloo does its work, without a compiler.

Started by test_deepspeed_launch.py under DeepSpeed's launcher.
"""

import sys

import deepspeed

from disentangled.finetune.run_command import main

if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    sys.exit(main())
