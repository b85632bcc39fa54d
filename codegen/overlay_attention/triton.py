"""Triton kernels of :mod:`sparsify.codegen.overlay_attention`.

Softmax does not care about the order of keys, so the overlaid keys and values are never written
out: one loop reads the baseline, in which the rows of active sites weigh nothing, and a second
one the packed rows. What weighs nothing has a bias of -inf: numbers to add are prefetched with
the keys; a mask is not, and its addresses take so many registers that the kernel spills (up to
120 bytes a thread on sm_90). The loop is that of FlashAttention-2 (Dao, 2023,
arXiv:2307.08691). Few queries are spread over the device by splitting the keys, as in
Flash-Decoding (Dao, Haziza, Massa and Sizov, 2023, https://pytorch.org/blog/flash-decoding).

Strides count UNIT elements, and a pointer that is None is absent.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..operators import KERNEL_DTYPES
from ..operators.device import in_rows, precision_of, processors
from ..operators.operands import require


@triton.jit
def _attend(
    best, total, mixed, query, keys, values, bias, key_step, value_step, start, stop, scale,
    KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """An online softmax continued with the rows [start, stop) of keys and values.

    best [M]: maximal score, in powers of two; total [M]: sum of the weights; mixed [M, BLOCK_V]:
    weighted sum of the values; both relative to ``best``.
    """
    lane, depth, width = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    for first in range(start, stop, BLOCK_N):
        inside = first + lane < stop
        rows = tl.cast(first, tl.int64)
        k = tl.load(
            keys + rows * key_step + lane[:, None] * key_step + depth[None, :],
            mask=inside[:, None] & (depth[None, :] < KEY_DIM),
            other=0.0,
        )
        v = tl.load(
            values + rows * value_step + lane[:, None] * value_step + width[None, :],
            mask=inside[:, None] & (width[None, :] < VALUE_DIM),
            other=0.0,
        )
        scores = tl.dot(query, tl.trans(k), input_precision=PRECISION) * scale
        scores += tl.load(bias + first + lane, mask=inside, other=float("-inf"))[None, :]
        new_best = tl.maximum(best, tl.max(scores, 1))
        # Before the first key of weight the maximum is -inf, and -inf - -inf is not a number.
        origin = tl.where(new_best == float("-inf"), 0.0, new_best)
        weights = tl.exp2(scores - origin[:, None])
        shrink = tl.exp2(best - origin)
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None], input_precision=PRECISION)
        best = new_best
    return best, total, mixed


# Sizes change with the edit, strides with the layer: specialising on them would compile again.
_SIZES = ["heads", "queries", "positions", "sites", "splits"]
_STEPS = [f"{name}_{axis}" for name in ("q", "bk", "bv", "k", "v") for axis in ("n", "h", "s")]


@triton.jit(do_not_specialize=[*_SIZES, *_STEPS])
def attention_kernel(
    query, base_key, base_value, key, value, bias, out, bests, totals, scale,
    heads, queries, positions, sites, splits,
    q_n, q_h, q_s, bk_n, bk_h, bk_s, bv_n, bv_h, bv_s, k_n, k_h, k_s, v_n, v_h, v_s,
    UNIT: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """One block of queries of a head over one split of the keys.

    Writes out [N, Sq, h, dv]; if split (``bests`` is given), the undivided sums to
    out [splits, N, Sq, h, dv] and maxima and sums of weights to bests, totals [splits, N, Sq, h].
    """
    # Neighbours share a head's keys, which then come from cache.
    blocks = tl.cdiv(queries, BLOCK_M)
    site = (tl.program_id(0) % blocks) * BLOCK_M + tl.arange(0, BLOCK_M)
    split, pair = tl.program_id(0) // blocks % splits, tl.program_id(0) // blocks // splits
    n, h = (pair // heads).to(tl.int64), (pair % heads).to(tl.int64)
    depth, width = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_V)
    q = tl.load(
        query
        + (n * q_n + h * q_h) * UNIT
        + site.to(tl.int64)[:, None] * (q_s * UNIT)
        + depth[None, :],
        mask=(site[:, None] < queries) & (depth[None, :] < KEY_DIM),
        other=0.0,
    )
    best = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    mixed = tl.zeros([BLOCK_M, BLOCK_V], tl.float32)

    share = tl.cdiv(tl.cdiv(positions, BLOCK_N), splits) * BLOCK_N
    best, total, mixed = _attend(
        best, total, mixed, q,
        base_key + (n * bk_n + h * bk_h) * UNIT, base_value + (n * bv_n + h * bv_h) * UNIT, bias,
        bk_s * UNIT, bv_s * UNIT, split * share, tl.minimum((split + 1) * share, positions), scale,
        KEY_DIM, VALUE_DIM, BLOCK_N, BLOCK_D, BLOCK_V, PRECISION,
    )  # fmt: skip
    share = tl.cdiv(tl.cdiv(sites, BLOCK_N), splits) * BLOCK_N
    best, total, mixed = _attend(
        best, total, mixed, q,
        key + (n * k_n + h * k_h) * UNIT, value + (n * v_n + h * v_h) * UNIT, bias + positions,
        k_s * UNIT, v_s * UNIT, split * share, tl.minimum((split + 1) * share, sites), scale,
        KEY_DIM, VALUE_DIM, BLOCK_N, BLOCK_D, BLOCK_V, PRECISION,
    )  # fmt: skip

    row = (n * queries + site) * heads + h
    if bests is not None:
        pairs = tl.num_programs(0).to(tl.int64) // blocks // splits
        row += split * pairs * queries
        tl.store(bests + row, best, mask=site < queries)
        tl.store(totals + row, total, mask=site < queries)
    else:
        mixed = mixed / total[:, None]
    tl.store(
        out + row[:, None] * VALUE_DIM + width[None, :],
        mixed.to(out.dtype.element_ty),
        mask=(site[:, None] < queries) & (width[None, :] < VALUE_DIM),
    )


@triton.jit(do_not_specialize=["rows", "splits"])
def combine_kernel(
    parts, bests, totals, out, rows, splits,
    VALUE_DIM: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Splits joined: parts [splits, rows, dv], bests and totals [splits, rows] -> [rows, dv]."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    width = tl.arange(0, BLOCK_V)
    inside = (row < rows)[:, None] & (width < VALUE_DIM)[None, :]
    best = tl.full([BLOCK_R], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    mixed = tl.zeros([BLOCK_R, BLOCK_V], tl.float32)
    for split in range(splits):
        at = tl.cast(split, tl.int64) * rows + row
        # Rows past the end get a total of one, which divides nothing by nothing.
        part_best = tl.load(bests + at, mask=row < rows, other=0.0)
        part_total = tl.load(totals + at, mask=row < rows, other=1.0)
        part = tl.load(parts + at[:, None] * VALUE_DIM + width[None, :], mask=inside, other=0.0)
        # Finite from the first split on, which has active keys; others may have met none at all.
        new_best = tl.maximum(best, part_best)
        shrink, part_shrink = tl.exp2(best - new_best), tl.exp2(part_best - new_best)
        total = total * shrink + part_total * part_shrink
        mixed = mixed * shrink[:, None] + part * part_shrink[:, None]
        best = new_best
    mixed = mixed / total[:, None]
    at = row[:, None] * VALUE_DIM + width[None, :]
    tl.store(out + at, mixed.to(out.dtype.element_ty), mask=inside)


def tile(m: int, n: int, warps: int, stages: int) -> triton.Config:
    """BLOCK_M queries, BLOCK_N keys, and how they are run."""
    return triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)


# By padded head dimension. None spills on sm_80 or sm_90, and their shared memory fits the 99 KB
# of sm_86 and sm_89.
_HALF = {64: tile(128, 64, 4, 3), 128: tile(128, 64, 8, 3), 256: tile(64, 32, 8, 2)}
_TF32 = {64: tile(64, 32, 4, 3), 128: tile(64, 32, 8, 2), 256: tile(32, 16, 8, 2)}
_IEEE = {64: tile(64, 32, 8, 2), 128: tile(32, 32, 8, 2), 256: tile(32, 16, 8, 2)}


def suited(queries: int, width: int, dtype: torch.dtype, precision: str) -> triton.Config:
    """The tile for heads of ``width`` (at most 256), with fewer queries where there are few."""
    half = dtype in (torch.float16, torch.bfloat16)
    table = _HALF if half else _TF32 if precision == "tf32" else _IEEE
    chosen = table[max(64, triton.next_power_of_2(width))]
    fewer = 16 if queries <= 16 else 64
    if queries > 64 or fewer >= chosen.kwargs["BLOCK_M"]:
        return chosen
    return tile(fewer, chosen.kwargs["BLOCK_N"], 4, chosen.num_stages)


_MAX_SPLITS = 64
_MIN_BLOCKS = 4  # of keys, for a split to be worth its part of the combination
_COMBINED_ROWS = 16


def split_count(programs: int, key_blocks: int, processors: int) -> int:
    """How often to split the keys: for two programs on each processor, if one is not enough."""
    if programs >= processors:
        return 1
    return max(1, min(2 * processors // programs, key_blocks // _MIN_BLOCKS, _MAX_SPLITS))


def launch(
    query: Tensor,
    base_key: Tensor,
    base_value: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
    splits: int | None = None,
    config: triton.Config | None = None,
) -> Tensor:
    """:func:`sparsify.codegen.overlay_attention.overlay_attention`. ``splits`` and the tile are
    chosen by shape, unless given. No table is read on the host. Raises :class:`OperandError`."""
    _check(query, base_key, base_value, key, value, bias)
    (batch, heads, queries, depth), width = query.shape, value.shape[3]
    positions = base_key.shape[2]
    precision = precision_of(query.dtype, torch.backends.cuda.matmul)
    config = config or suited(queries, max(depth, width), query.dtype, precision)
    blocks_m = triton.cdiv(queries, config.kwargs["BLOCK_M"])
    blocks_n = triton.cdiv(positions, config.kwargs["BLOCK_N"])
    programs = blocks_m * batch * heads
    splits = splits or split_count(programs, blocks_n, processors(query.device))

    operands = [in_rows(x) for x in (query, base_key, base_value, key, value)]
    unit, steps = _steps(operands)
    out = query.new_empty((batch, queries, heads, width))
    parts, bests, totals = out, None, None
    if splits > 1:
        parts = out.new_empty((splits, *out.shape), dtype=torch.float32)
        bests, totals = parts.new_empty((2, *parts.shape[:-1]))
    sizes = (heads, queries, positions, key.shape[2], splits)
    padded = max(16, triton.next_power_of_2(width))
    with torch.cuda.device_of(query):
        attention_kernel[(programs * splits,)](
            *(*operands, bias.contiguous(), parts, bests, totals, scale * math.log2(math.e)),
            *(*sizes, *steps),
            **{"UNIT": unit, "KEY_DIM": depth, "VALUE_DIM": width, "PRECISION": precision},
            **{"BLOCK_D": max(16, triton.next_power_of_2(depth)), "BLOCK_V": padded},
            **config.all_kwargs(),
            enable_fp_fusion=True,
        )
        if splits > 1:
            rows = batch * queries * heads
            combine_kernel[(triton.cdiv(rows, _COMBINED_ROWS),)](
                *(parts, bests, totals, out, rows, splits),
                **{"VALUE_DIM": width, "BLOCK_R": _COMBINED_ROWS, "BLOCK_V": padded},
                enable_fp_fusion=True,
            )
    return out.transpose(1, 2)


def _check(
    query: Tensor, base_key: Tensor, base_value: Tensor, key: Tensor, value: Tensor, bias: Tensor
) -> None:
    """Raises :class:`OperandError` unless all of it is what the kernels take it for."""
    device, same = query.device, (query.dtype,)
    require("overlay_attention", "query", query, (None,) * 4, KERNEL_DTYPES, device)
    batch, heads, _, depth = query.shape
    require("overlay_attention", "base_key", base_key, (batch, heads, None, depth), same, device)
    require("overlay_attention", "key", key, (batch, heads, None, depth), same, device)
    positions, sites = base_key.shape[2], key.shape[2]
    recorded = (batch, heads, positions, None)
    require("overlay_attention", "base_value", base_value, recorded, same, device)
    packed = (batch, heads, sites, base_value.shape[3])
    require("overlay_attention", "value", value, packed, same, device)
    require("overlay_attention", "bias", bias, (positions + sites,), (torch.float32,), device)


def _steps(operands: list[Tensor]) -> tuple[int, list[int]]:
    """(UNIT, strides in units): 16 bytes where all strides allow reads that wide, or 1."""
    steps = [
        step if size > 1 else 0  # an axis of one may have any stride
        for x in operands
        for size, step in zip(x.shape[:3], x.stride()[:3], strict=True)
    ]
    wide = 16 // operands[0].element_size()
    unit = wide if all(step % wide == 0 for step in steps) else 1
    return unit, [step // unit for step in steps]
