"""Forward pass of the fused masked language modelling loss: two kernels, no logits in device memory.

`statistics_kernel` walks the table by tiles of ids and leaves, for each row, what the loss needs of its part of the
ids, and the logsumexp of every block of SAMPLE_BLOCK ids as the draw wants it. `finish_kernel` joins the parts and
draws: a block by the first uniform number, then, from this block's logits computed once more, an id by the second.
Used by: launch.py. Tested by: tests/kernels/test_triton_masked_lm_loss.py.
Not here: gradients (backward.py); tile sizes (tile_sizes.py); what is drawn and why so (draw.py).
"""

# M masked tokens  D hidden width  V vocabulary

import triton
import triton.language as tl

from disentangled.kernels.counter_rng_triton import random_words, uniform
from disentangled.kernels.masked_lm_loss import draw
from disentangled.kernels.masked_lm_loss.logit_tiles import DATA_DEPENDENT, logit_tile

LARGEST_SCORE = tl.constexpr(draw.LARGEST_SCORE)
SAMPLE_BLOCK = tl.constexpr(draw.SAMPLE_BLOCK)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def statistics_kernel(
    hidden_ptr, table_ptr, bias_ptr, labels_ptr, banned_ptr,
    total_ptr, largest_ptr, best_ptr, label_logit_ptr, block_lse_ptr,
    num_rows, num_ids, num_sample_blocks, inverse_temperature,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_D: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Owns BLOCK_M rows and TILES tiles of ids; writes four numbers a row, [parts, M], and logsumexps [M, blocks]."""
    first_row, part = tl.program_id(0) * BLOCK_M, tl.program_id(1)
    offs_m = first_row + tl.arange(0, BLOCK_M)
    row_mask = offs_m < num_rows
    label = tl.load(labels_ptr + offs_m, mask=row_mask, other=-1)
    largest = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    label_logit = tl.zeros([BLOCK_M], tl.float32)
    best = tl.zeros([BLOCK_M], tl.int32)
    first_id = part * TILES * BLOCK_V
    for id0 in tl.range(first_id, tl.minimum(first_id + TILES * BLOCK_V, num_ids), BLOCK_V):
        offs_v = id0 + tl.arange(0, BLOCK_V)
        id_mask = offs_v < num_ids
        logits = logit_tile(
            hidden_ptr, table_ptr, bias_ptr, first_row, id0, num_rows, num_ids, WIDTH, BLOCK_M, BLOCK_V, BLOCK_D
        )
        logits = tl.where(id_mask[None, :], logits, float("-inf"))

        tile_largest = tl.max(logits, 1)
        tile_best = tl.min(tl.where(logits == tile_largest[:, None], offs_v[None, :], num_ids), 1)
        best = tl.where(tile_largest > largest, tile_best, best)
        new_largest = tl.maximum(largest, tile_largest)
        reference = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        total = total * tl.exp(largest - reference) + tl.sum(tl.exp(logits - reference[:, None]), 1)
        largest = new_largest
        label_logit += tl.sum(tl.where(offs_v[None, :] == label[:, None], logits, 0.0), 1)

        banned = tl.load(banned_ptr + offs_v, mask=id_mask, other=1)
        scores = clean(logits, inverse_temperature, (banned == 0)[None, :])
        scores = tl.reshape(scores, [BLOCK_M, BLOCK_V // SAMPLE_BLOCK, SAMPLE_BLOCK])
        peak = tl.max(scores, 2)
        reference_of_block = tl.where(peak == float("-inf"), 0.0, peak)
        block_lse = reference_of_block + tl.log(tl.sum(tl.exp(scores - reference_of_block[:, :, None]), 2))
        offs_b = id0 // SAMPLE_BLOCK + tl.arange(0, BLOCK_V // SAMPLE_BLOCK)
        tl.store(
            block_lse_ptr + offs_m.to(tl.int64)[:, None] * num_sample_blocks + offs_b[None, :],
            block_lse,
            mask=row_mask[:, None] & (offs_b < num_sample_blocks)[None, :],
        )
    place = part.to(tl.int64) * num_rows + offs_m
    tl.store(total_ptr + place, total, mask=row_mask)
    tl.store(largest_ptr + place, largest, mask=row_mask)
    tl.store(best_ptr + place, best, mask=row_mask)
    tl.store(label_logit_ptr + place, label_logit, mask=row_mask)


@triton.jit
def clean(logits, inverse_temperature, is_allowed):
    """draw.scores_of: finite logits / temperature, -inf where an id may not be drawn."""
    scores = logits * inverse_temperature
    scores = tl.where(scores == scores, scores, 0.0)
    scores = tl.minimum(tl.maximum(scores, -LARGEST_SCORE), LARGEST_SCORE)
    return tl.where(is_allowed, scores, float("-inf"))


@triton.jit
def choose(log_weights, number, NUM_CHOICES: tl.constexpr):
    """draw.choose: for each row the first of [rows, NUM_CHOICES] whose cumulative weight passes the number's share."""
    weights = tl.exp(log_weights - tl.max(log_weights, 1)[:, None]).to(tl.float64)
    cumulative = tl.cumsum(weights, 1)
    place = tl.arange(0, NUM_CHOICES)[None, :]
    passed = (cumulative > (number * tl.max(cumulative, 1))[:, None]) & (weights > 0.0)
    first = tl.min(tl.where(passed, place, NUM_CHOICES), 1)
    last = tl.max(tl.where(weights > 0.0, place, 0), 1)
    return tl.where(first == NUM_CHOICES, last, first)


@triton.jit(do_not_specialize=DATA_DEPENDENT)
def finish_kernel(
    hidden_ptr, table_ptr, bias_ptr, labels_ptr, banned_ptr, sample_ptr, token_ptr,
    part_total_ptr, part_largest_ptr, part_best_ptr, part_label_logit_ptr, block_lse_ptr,
    loss_ptr, lse_ptr, reference_ptr, sum_ptr, is_correct_ptr, drawn_ptr,
    num_rows, num_ids, num_parts, num_sample_blocks, inverse_temperature, key_0, key_1, stream,
    WIDTH: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, PARTS: tl.constexpr,
    SAMPLE_BLOCKS: tl.constexpr,
):  # fmt: skip
    """Owns BLOCK_M rows; writes losses, logsumexps in one number and in two, is_correct and drawn ids."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_mask, row_64 = rows < num_rows, rows.to(tl.int64)
    offs_p = tl.arange(0, PARTS)
    part_mask = (offs_p < num_parts)[None, :] & row_mask[:, None]
    place = offs_p.to(tl.int64)[None, :] * num_rows + rows[:, None]
    total = tl.load(part_total_ptr + place, mask=part_mask, other=0.0)
    largest = tl.load(part_largest_ptr + place, mask=part_mask, other=float("-inf"))
    best = tl.load(part_best_ptr + place, mask=part_mask, other=0)
    label_logit = tl.sum(tl.load(part_label_logit_ptr + place, mask=part_mask, other=0.0), 1)
    reference = tl.max(largest, 1)
    total = tl.sum(total * tl.exp(largest - reference[:, None]), 1)
    log_total = tl.log(total)
    label = tl.load(labels_ptr + rows, mask=row_mask, other=-1)
    # In this order: the two large numbers cancel before anything is rounded to their last place.
    loss = tl.where(label >= 0, (reference - label_logit) + log_total, 0.0)
    tl.store(loss_ptr + rows, loss, mask=row_mask)
    tl.store(lse_ptr + rows, reference + log_total, mask=row_mask)
    tl.store(reference_ptr + rows, reference, mask=row_mask)
    tl.store(sum_ptr + rows, total, mask=row_mask)
    # Equal logits in several parts: the lowest id, which is in the first of them.
    likeliest = tl.min(tl.where(part_mask & (largest == reference[:, None]), best, num_ids), 1)
    tl.store(is_correct_ptr + rows, likeliest == label, mask=row_mask)

    sample = tl.load(sample_ptr + rows, mask=row_mask, other=0)
    token = tl.load(token_ptr + rows, mask=row_mask, other=0)
    word_0, word_1, word_2, word_3 = random_words(key_0, key_1, stream, 0, sample, token, token * 0)
    offs_b = tl.arange(0, SAMPLE_BLOCKS)
    block_lse = tl.load(
        block_lse_ptr + row_64[:, None] * num_sample_blocks + offs_b[None, :],
        mask=row_mask[:, None] & (offs_b < num_sample_blocks)[None, :],
        other=float("-inf"),
    )
    block = choose(block_lse, uniform(word_0, word_1), SAMPLE_BLOCKS)
    block = tl.minimum(block, num_sample_blocks - 1)  # a row past the last has any

    ids = block[:, None] * SAMPLE_BLOCK + tl.arange(0, SAMPLE_BLOCK)[None, :]
    id_mask = row_mask[:, None] & (ids < num_ids)
    logits = tl.load(bias_ptr + ids, mask=id_mask, other=0.0).to(tl.float32)
    for d0 in tl.range(0, WIDTH, BLOCK_D):
        offs_d = d0 + tl.arange(0, BLOCK_D)
        width_mask = offs_d < WIDTH
        hidden = tl.load(
            hidden_ptr + row_64[:, None] * WIDTH + offs_d[None, :],
            mask=row_mask[:, None] & width_mask[None, :],
            other=0.0,
        )
        table = tl.load(
            table_ptr + ids.to(tl.int64)[:, :, None] * WIDTH + offs_d[None, None, :],
            mask=id_mask[:, :, None] & width_mask[None, None, :],
            other=0.0,
        ).to(hidden.dtype)
        logits += tl.sum(table.to(tl.float32) * hidden.to(tl.float32)[:, None, :], 2)
    banned = tl.load(banned_ptr + ids, mask=id_mask, other=1)
    scores = clean(logits, inverse_temperature, banned == 0)
    drawn = block * SAMPLE_BLOCK + choose(scores, uniform(word_2, word_3), SAMPLE_BLOCK)
    tl.store(drawn_ptr + rows, drawn.to(tl.int64), mask=row_mask)
