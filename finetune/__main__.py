"""`python -m disentangled.finetune`: run_command.py says what it does.

Used by: users. Tested by tests/finetune/test_deepspeed_launch.py.
"""

import sys

from disentangled.finetune.run_command import main

if __name__ == "__main__":
    sys.exit(main())
