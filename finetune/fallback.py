"""What is said when a call cannot run on the fused op, or cannot leave padding out: one warning for each reason.

Used by: accelerate.py, fused_encoder.py. Tested by: tests/finetune/test_fallback.py.
Not here: what the reasons are.
"""

import functools
import logging

logger = logging.getLogger("disentangled")


@functools.cache
def say_once(reason: str, consequence: str) -> None:
    """A warning on the logger `disentangled`, the first time that this process meets the reason."""
    logger.warning("%s, so %s", reason, consequence)
