"""Attention over an overlay: the baseline's keys without the stale ones, then the active ones.

Softmax does not care about the order of keys, so the overlaid keys and values are never written
out: one loop reads the baseline and leaves out the rows of active sites, a second one reads the
active rows. The inner loop is that of FlashAttention-2 (Dao, 2023, arXiv:2307.08691); few queries
are spread over the device by splitting the keys, as in Flash-Decoding (Dao et al., 2023,
https://pytorch.org/blog/flash-decoding). The plain counterpart is
:func:`sparsify.codegen.overlay_attention.overlay_attention_reference`.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

# Where no device tells its number of multiprocessors: that of an H100.
_MULTIPROCESSORS = 132
# A split shorter than this many blocks of keys costs more to combine than it saves.
_MIN_SPLIT = 4
_MAX_SPLITS = 64
_COMBINED_ROWS = 16
_LOG2_E = math.log2(math.e)


@triton.jit
def _attend(
    best,
    total,
    mixed,
    query,
    key_ptr,
    value_ptr,
    stale_ptr,
    key_stride,
    value_stride,
    start,
    stop,
    scale,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Continues an online softmax with the rows [start, stop) of keys and values.

    best [M] is the running maximum of the scores (in powers of two), total [M] the sum of
    weights and mixed [M, BLOCK_V] the weighted sum of values, both relative to ``best``. Rows
    that ``stale_ptr`` (None: there are none) marks are left out.
    """
    lane = tl.arange(0, BLOCK_N)
    depth = tl.arange(0, BLOCK_D)
    width = tl.arange(0, BLOCK_V)
    for first in range(start, stop, BLOCK_N):
        kept = first + lane < stop
        key_block = key_ptr + tl.cast(first, tl.int64) * key_stride
        value_block = value_ptr + tl.cast(first, tl.int64) * value_stride
        keys = tl.load(
            key_block + lane[:, None] * key_stride + depth[None, :],
            mask=kept[:, None] & (depth[None, :] < KEY_DIM),
            other=0.0,
        )
        values = tl.load(
            value_block + lane[:, None] * value_stride + width[None, :],
            mask=kept[:, None] & (width[None, :] < VALUE_DIM),
            other=0.0,
        )
        if stale_ptr is not None:
            kept = kept & (tl.load(stale_ptr + first + lane, mask=kept, other=1) == 0)
        scores = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
        scores = tl.where(kept[None, :], scores, float("-inf"))
        new_best = tl.maximum(best, tl.max(scores, 1))
        # Until a row has met a key its maximum is -inf, and -inf - -inf is no number.
        offset = tl.where(new_best == float("-inf"), 0.0, new_best)
        weights = tl.exp2(scores - offset[:, None])
        shrink = tl.exp2(best - offset)
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(
            weights.to(values.dtype), values, mixed * shrink[:, None], input_precision=PRECISION
        )
        best = new_best
    return best, total, mixed


# Sizes and strides change from edit to edit and from layer to layer: specialising on their
# divisibility would compile each kernel many times over. ``UNIT`` alone tells of alignment.
_PLAIN = [
    *("heads", "queries", "positions", "sites", "splits"),
    *(f"{name}_{axis}" for name in ("q", "bk", "bv", "k", "v") for axis in ("n", "h", "s")),
]


@triton.jit(do_not_specialize=_PLAIN)
def _attention_kernel(
    query_ptr,
    base_key_ptr,
    base_value_ptr,
    key_ptr,
    value_ptr,
    stale_ptr,
    count_ptr,
    out_ptr,
    best_ptr,
    total_ptr,
    scale,
    heads,
    queries,
    positions,
    sites,
    splits,
    q_n,
    q_h,
    q_s,
    bk_n,
    bk_h,
    bk_s,
    bv_n,
    bv_h,
    bv_s,
    k_n,
    k_h,
    k_s,
    v_n,
    v_h,
    v_s,
    UNIT: tl.constexpr,
    SPLIT: tl.constexpr,
    KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One block of queries of one head over one split of the keys.

    Strides count ``UNIT`` elements. ``out_ptr`` is [N, Sq, h, dv]; with ``SPLIT`` it is
    [splits, N, Sq, h, dv] in float32, not yet divided by the sum of weights, and ``best_ptr``
    and ``total_ptr`` [splits, N, Sq, h] take the maxima and the sums.
    """
    blocks = tl.cdiv(queries, BLOCK_M)
    program = tl.program_id(0)
    split = (program // blocks) % splits
    pair = program // (blocks * splits)
    batch = (pair // heads).to(tl.int64)
    head = (pair % heads).to(tl.int64)
    site = (program % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    width = tl.arange(0, BLOCK_V)

    query = tl.load(
        query_ptr
        + (batch * q_n + head * q_h) * UNIT
        + site[:, None].to(tl.int64) * (q_s * UNIT)
        + depth[None, :],
        mask=(site[:, None] < queries) & (depth[None, :] < KEY_DIM),
        other=0.0,
    )
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    share = tl.cdiv(tl.cdiv(positions, BLOCK_N), splits) * BLOCK_N
    best, total, mixed = _attend(
        best,
        total,
        mixed,
        query,
        base_key_ptr + (batch * bk_n + head * bk_h) * UNIT,
        base_value_ptr + (batch * bv_n + head * bv_h) * UNIT,
        stale_ptr,
        bk_s * UNIT,
        bv_s * UNIT,
        split * share,
        tl.minimum(split * share + share, positions),
        scale,
        KEY_DIM,
        VALUE_DIM,
        BLOCK_N,
        BLOCK_D,
        BLOCK_V,
        PRECISION,
    )
    active = sites
    if count_ptr is not None:
        active = tl.minimum(tl.load(count_ptr).to(tl.int32), sites)
    share = tl.cdiv(tl.cdiv(active, BLOCK_N), splits) * BLOCK_N
    best, total, mixed = _attend(
        best,
        total,
        mixed,
        query,
        key_ptr + (batch * k_n + head * k_h) * UNIT,
        value_ptr + (batch * v_n + head * v_h) * UNIT,
        None,
        k_s * UNIT,
        v_s * UNIT,
        split * share,
        tl.minimum(split * share + share, active),
        scale,
        KEY_DIM,
        VALUE_DIM,
        BLOCK_N,
        BLOCK_D,
        BLOCK_V,
        PRECISION,
    )

    row = (batch * queries + site) * heads + head
    if SPLIT:
        rows = tl.num_programs(0).to(tl.int64) // (blocks * splits) * queries
        row += split * rows
        tl.store(best_ptr + row, best, mask=site < queries)
        tl.store(total_ptr + row, total, mask=site < queries)
    else:
        mixed = mixed / total[:, None]
    tl.store(
        out_ptr + row[:, None] * VALUE_DIM + width[None, :],
        mixed.to(out_ptr.dtype.element_ty),
        mask=(site[:, None] < queries) & (width[None, :] < VALUE_DIM),
    )


@triton.jit(do_not_specialize=["rows", "splits"])
def _combine_kernel(
    mixed_ptr,
    best_ptr,
    total_ptr,
    out_ptr,
    rows,
    splits,
    VALUE_DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_V: tl.constexpr,
):
    """Joins the splits: mixed [splits, rows, dv], best and total [splits, rows] -> [rows, dv]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    width = tl.arange(0, BLOCK_V)
    kept = row < rows
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    mixed = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    inside = kept[:, None] & (width[None, :] < VALUE_DIM)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * rows + row
        part_best = tl.load(best_ptr + at, mask=kept, other=float("-inf"))
        new_best = tl.maximum(best, part_best)
        # A split may have met no key at all: stale rows alone, and no active block.
        offset = tl.where(new_best == float("-inf"), 0.0, new_best)
        shrink, part_shrink = tl.exp2(best - offset), tl.exp2(part_best - offset)
        part_total = tl.load(total_ptr + at, mask=kept, other=0.0)
        part = tl.load(mixed_ptr + at[:, None] * VALUE_DIM + width[None, :], mask=inside, other=0.0)
        total = total * shrink + part_total * part_shrink
        mixed = mixed * shrink[:, None] + part * part_shrink[:, None]
        best = new_best
    mixed = mixed / tl.where(kept, total, 1.0)[:, None]
    tl.store(
        out_ptr + row[:, None] * VALUE_DIM + width[None, :],
        mixed.to(out_ptr.dtype.element_ty),
        mask=inside,
    )
