"""The size of each global batch, and with it the samples that a number of updates consumes.

What: `batch.global_sequences` rows at each update, or a warm-up to it: the first update takes `batch.first_sequences`,
and over `batch.rise_steps` updates the size rises by so many at a time, in steps as even as they can be. Sizes belong
to the experiment: they know neither ranks nor micro-batches, of which each size must hold a whole number. All of the
data's position is a function of the update's number, so a resume needs nothing else.
Used by: trainer/assemble.py, loop.py, loader.py, plan.py. Tested by tests/trainer/test_batch_size.py.
"""

from disentangled.trainer.sections import BatchSection


def sequences_at(batch: BatchSection, step: int) -> int:
    """Rows of update number `step` (0 for the first), over all ranks."""
    if step >= batch.rise_steps:
        return batch.global_sequences
    rises = batch.global_sequences // batch.first_sequences - 1
    return batch.first_sequences * (1 + step * rises // batch.rise_steps)


def consumed_samples(batch: BatchSection, step: int) -> int:
    """Samples that the updates 0 .. step - 1 use up together."""
    consumed = step * batch.global_sequences
    if batch.rise_steps:
        rises = batch.global_sequences // batch.first_sequences - 1
        # rise number k comes at update ceil(k * warmup_steps / rises): every update before it is one rise short
        missing = sum(min(step, -(-k * batch.rise_steps // rises)) for k in range(1, rises + 1))
        consumed -= batch.first_sequences * missing
    return consumed


def micro_batches_at(batch: BatchSection, step: int, world_size: int) -> int:
    """Micro-batches that each rank runs in update number `step`."""
    return sequences_at(batch, step) // (batch.micro_sequences * world_size)
