"""Triton kernels of :mod:`sparsify.codegen.gather_conv`.

An implicit GEMM (Chetlur et al., cuDNN, 2014) over a kernel map, as in sparse convolution
(TorchSparse, Tang et al., 2022): the rows of the left factor are gathered while they are read,
from the packed input or from the baseline, and no column matrix stands in memory. The sum over
taps and channels is split over programs where few sites meet many channels (split-K). Of weights
that keep N of M inputs a list tells which these are: the left factor is then gathered by channels
as well, and what is not kept is never read.

A pointer that is None is absent; without a kernel map each row reads its own site. ``rows`` are
(item, site) pairs, ``s_out`` of them an item.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import OperandError
from ..operators import KERNEL_DTYPES
from ..operators.device import SHARED_BYTES, in_rows, precision_of, processors
from ..operators.operands import require

# Counts of sites: specialising on them would compile again for other masks.
_sized = triton.jit(do_not_specialize=["rows", "s_out", "s_in", "s_halo"])


@triton.jit
def _epilogue(
    acc, m, n, inside, bias, shift, residual, slope, scale, s_out,
    WIDTH: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """activation(acc + bias + shift) * scale + residual, for rows m and columns n."""
    if bias is not None:
        acc += tl.load(bias + n, mask=n < WIDTH, other=0.0).to(tl.float32)[None, :]
    if shift is not None:
        at = (m // s_out)[:, None] * WIDTH + n[None, :]
        acc += tl.load(shift + at, mask=inside, other=0.0).to(tl.float32)
    if ACTIVATION == "relu":
        acc = tl.maximum(acc, 0.0)
    elif ACTIVATION == "leaky_relu":
        acc = tl.where(acc > 0, acc, acc * slope)
    elif ACTIVATION == "silu":
        acc = acc * tl.sigmoid(acc)
    acc *= scale
    if residual is not None:
        at = m[:, None] * WIDTH + n[None, :]
        acc += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    return acc


@triton.jit
def _row_pointers(
    x, halo, halo_sites, kernel_map, m, m_in, tap,
    s_out, s_in, s_halo, x_item, x_site, halo_item, halo_site, TAPS: tl.constexpr,
):  # fmt: skip
    """Where the input of each row m for ``tap`` stands, and whether it does (else it is zero)."""
    item, site = m // s_out, m % s_out
    if kernel_map is not None:
        source = tl.load(kernel_map + site * TAPS + tap, mask=m_in, other=s_in + s_halo)
    else:
        source = tl.where(m_in, site, s_in + s_halo)
    pointers = x + item * x_item + source * x_site
    found = source < s_in
    if halo is not None:
        recorded = (source >= s_in) & (source < s_in + s_halo)
        at = source - s_in
        if halo_sites is not None:
            at = tl.load(halo_sites + at, mask=recorded, other=0)
        pointers = tl.where(recorded, halo + item * halo_item + at * halo_site, pointers)
        found = found | recorded
    return pointers, found


@_sized
def matmul_kernel(
    x, halo, halo_sites, kernel_map, weight, lists, bias, shift, residual, slope, scale, out,
    rows, s_out, s_in, s_halo, x_item, x_site, halo_item, halo_site,
    CHANNELS: tl.constexpr, WIDTH: tl.constexpr, GROUPS: tl.constexpr, TAPS: tl.constexpr,
    INPUTS: tl.constexpr, PER_LIST: tl.constexpr,
    SPLITS: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """A tile of out [rows, WIDTH] of a group, or of its part [SPLITS, rows, ...] if split.

    CHANNELS and WIDTH are those of a group; weight [GROUPS, TAPS * CHANNELS, WIDTH]. With lists
    [WIDTH / PER_LIST, TAPS * CHANNELS] there is one group, and CHANNELS are what is kept of INPUTS.
    An entry is a channel of x, plus INPUTS for each tap before. BLOCK_N divides PER_LIST.
    """
    tiles = tl.cdiv(rows, BLOCK_M)
    # Neighbours share the weights, which are the larger factor when there are few sites.
    m = ((tl.program_id(0) % tiles) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = (tl.program_id(0) // tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    group, split = tl.program_id(1), tl.program_id(2)
    m_in, n_in = m < rows, n < WIDTH

    blocks: tl.constexpr = (CHANNELS + BLOCK_K - 1) // BLOCK_K
    per_split: tl.constexpr = (TAPS * blocks + SPLITS - 1) // SPLITS
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    start = split * per_split
    for step in range(start, tl.minimum(start + per_split, TAPS * blocks)):
        tap = step // blocks
        c = (step % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
        c_in = c < CHANNELS
        pointers, found = _row_pointers(
            x, halo, halo_sites, kernel_map, m, m_in, tap,
            s_out, s_in, s_halo, x_item, x_site, halo_item, halo_site, TAPS,
        )  # fmt: skip
        a_in = found[:, None] & c_in[None, :]
        channel = group * CHANNELS + c
        if lists is not None:
            own = lists + (tl.program_id(0) // tiles) * BLOCK_N // PER_LIST * (TAPS * CHANNELS)
            channel = tl.load(own + tap * CHANNELS + c, mask=c_in, other=0) - tap * INPUTS
        a = tl.load(pointers[:, None] + channel[None, :], mask=a_in, other=0.0)
        depth = ((group * TAPS + tap) * CHANNELS + c).to(tl.int64)
        b_in = c_in[:, None] & n_in[None, :]
        b = tl.load(weight + depth[:, None] * WIDTH + n[None, :], mask=b_in, other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)

    inside, column = m_in[:, None] & n_in[None, :], group * WIDTH + n
    total: tl.constexpr = GROUPS * WIDTH
    if SPLITS == 1:
        acc = _epilogue(
            acc, m, column, inside, bias, shift, residual, slope, scale, s_out, total, ACTIVATION
        )
    at = (split * tl.cast(rows, tl.int64) + m)[:, None] * total + column[None, :]
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)


@_sized
def reduce_kernel(
    parts, bias, shift, residual, slope, scale, out, rows, s_out,
    WIDTH: tl.constexpr, SPLITS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Sum of the parts [SPLITS, rows, WIDTH], and the epilogue."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = (m < rows)[:, None] & (n < WIDTH)[None, :]
    at = m[:, None] * WIDTH + n[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for split in range(SPLITS):
        part = parts + tl.cast(rows, tl.int64) * WIDTH * split
        acc += tl.load(part + at, mask=inside, other=0.0)
    acc = _epilogue(
        acc, m, n, inside, bias, shift, residual, slope, scale, s_out, WIDTH, ACTIVATION
    )
    tl.store(out + at, acc.to(out.dtype.element_ty), mask=inside)


@_sized
def depthwise_kernel(
    x, halo, halo_sites, kernel_map, weight, bias, shift, residual, slope, scale, out,
    rows, s_out, s_in, s_halo, x_item, x_site, halo_item, halo_site,
    WIDTH: tl.constexpr, TAPS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One channel a group: a weighted sum of taps, no product. weight [WIDTH, TAPS]."""
    m = (tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_in, n_in = m < rows, n < WIDTH
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for tap in range(TAPS):
        pointers, found = _row_pointers(
            x, halo, halo_sites, kernel_map, m, m_in, tap,
            s_out, s_in, s_halo, x_item, x_site, halo_item, halo_site, TAPS,
        )  # fmt: skip
        a_in = found[:, None] & n_in[None, :]
        a = tl.load(pointers[:, None] + n[None, :], mask=a_in, other=0.0)
        w = tl.load(weight + n * TAPS + tap, mask=n_in, other=0.0)
        acc += a.to(tl.float32) * w.to(tl.float32)[None, :]
    inside = m_in[:, None] & n_in[None, :]
    acc = _epilogue(
        acc, m, n, inside, bias, shift, residual, slope, scale, s_out, WIDTH, ACTIVATION
    )
    tl.store(out + m[:, None] * WIDTH + n[None, :], acc.to(out.dtype.element_ty), mask=inside)


def tile(m: int, n: int, k: int, warps: int, stages: int) -> triton.Config:
    """BLOCK_M, BLOCK_N, BLOCK_K, and how they are run."""
    blocks = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    return triton.Config(blocks, num_warps=warps, num_stages=stages)


_FEWEST, _FEW, _MIDDLE = tile(16, 64, 64, 4, 5), tile(32, 128, 64, 4, 4), tile(64, 64, 64, 4, 4)
_TALL, _LARGE = tile(128, 64, 64, 4, 3), tile(128, 128, 64, 4, 3)
TILES = [_FEWEST, _FEW, _MIDDLE, _TALL, _LARGE]
_BY_ROWS = {32: (_FEWEST, _FEW), 128: (_FEW, _MIDDLE), 512: (_FEW, _TALL)}  # and above:
_MANY_ROWS = (_TALL, _LARGE)


def suited(
    configs: list[triton.Config], arguments: dict[str, Any], **constants: Any
) -> list[triton.Config]:
    """The two tiles for so many rows, if not much wider than the product and if their operands
    fit the shared memory. Of 16 tiles measured on an H200 for 22 sizes of fp16 products, these
    are the best, or within a tenth of it or 2 us. For lists they are changed a little."""
    known = {**arguments, **constants}
    rows, element = known["rows"], known["x"].element_size()
    chosen = next((two for most, two in _BY_ROWS.items() if rows <= most), _MANY_ROWS)

    def fits(config: triton.Config) -> bool:
        m, n, k = (int(config.kwargs[f"BLOCK_{name}"]) for name in "MNK")
        small = n <= max(64, 2 * int(known["WIDTH"]))
        return small and (m + n) * k * element * config.num_stages <= SHARED_BYTES

    of_these = [config for config in configs if config in chosen and fits(config)] or [_FEWEST]
    if columns := int(known["PER_LIST"]):
        return list(dict.fromkeys(_for_lists(config, columns, element) for config in of_these))
    return of_these


def _for_lists(config: triton.Config, columns: int, element: int) -> triton.Config:
    """No wider than what shares a list, and 64 bytes deep: each number of the left factor has an
    address of its own, and these take registers."""
    m, n = int(config.kwargs["BLOCK_M"]), int(config.kwargs["BLOCK_N"])
    return tile(m, min(n, columns), 64 // element, config.num_warps, config.num_stages)


_tuned = triton.autotune(
    configs=TILES,
    key=["rows", "CHANNELS", "WIDTH", "GROUPS", "TAPS", "PER_LIST", "SPLITS", "PRECISION"],
    prune_configs_by={"early_config_prune": suited},
    cache_results=True,
)(matmul_kernel)

_DEPTHWISE = {"BLOCK_M": 32, "BLOCK_N": 64}
_REDUCE = {"BLOCK_M": 16, "BLOCK_N": 128}
_FUSED = {"enable_fp_fusion": True}  # of products and sums; a default that Triton gives up
_MAX_SPLITS = 16
_MIN_STEPS = 4  # of the loop over taps and channels, for a program to be worth its start


def launch(
    x: Tensor,
    halo: Tensor | None,
    halo_sites: Tensor | None,
    kernel_map: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    activation: str,
    slope: float,
    scale: float,
    residual: Tensor | None,
    lists: Tensor | None = None,
    splits: int | None = None,
    config: triton.Config | None = None,
) -> Tensor:
    """:func:`sparsify.codegen.gather_conv.reference`; without a kernel map a linear layer on rows.

    With ``lists`` int32 [L, taps * K] ``weight`` is [1, taps * K, C_out]: it has the K inputs of
    each tap that the lists name, one for every C_out / L columns (``gather_matmul/tiles.py``).
    ``splits`` are chosen by shape and the tile by measurement, unless given. No table is read on
    the host. Raises :class:`OperandError`.
    """
    _check(x, halo, halo_sites, kernel_map, weight, lists, bias, shift, residual)
    batch, (groups, depth, width) = len(x), weight.shape
    sites, taps = (x.shape[1], 1) if kernel_map is None else kernel_map.shape
    rows = batch * sites
    x, halo = in_rows(x), None if halo is None else in_rows(halo)
    known = 0 if halo is None else halo.shape[1] if halo_sites is None else len(halo_sites)
    halo_steps = (0, 0) if halo is None else (halo.stride(0), halo.stride(1))
    sizes = (rows, sites, x.shape[1], known, x.stride(0), x.stride(1), *halo_steps)
    halo_sites = None if halo_sites is None else halo_sites.contiguous()
    kernel_map = None if kernel_map is None else kernel_map.contiguous()
    lists = None if lists is None else lists.contiguous()
    operands = (x, halo, halo_sites, kernel_map, weight.contiguous())
    bias = None if bias is None else bias.contiguous()
    shift = None if shift is None else shift.contiguous()
    residual = None if residual is None else residual.contiguous()
    epilogue = (bias, shift, residual, slope, scale)
    out = x.new_empty((batch, sites, groups * width))
    with torch.cuda.device_of(x):
        if depth == taps and width == 1:
            _depthwise(operands, epilogue, out, sizes, activation)
        else:
            splits = splits or _splits(rows, groups * width, depth, processors(x.device))
            _matmul((*operands, lists), epilogue, out, sizes, activation, splits, config)
    return out


def _check(
    x: Tensor,
    halo: Tensor | None,
    halo_sites: Tensor | None,
    kernel_map: Tensor | None,
    weight: Tensor,
    lists: Tensor | None,
    bias: Tensor | None,
    shift: Tensor | None,
    residual: Tensor | None,
) -> None:
    """Raises :class:`OperandError` unless all of it is what the kernels take it for."""
    device, same, numbers = x.device, (x.dtype,), (torch.int64,)
    require("gather_conv", "x", x, (None, None, None), KERNEL_DTYPES, device)
    batch, _, channels = x.shape
    require("gather_conv", "halo", halo, (batch, None, channels), same, device)
    require("gather_conv", "halo_sites", halo_sites, (None,), numbers, device)
    require("gather_conv", "kernel_map", kernel_map, (None, None), numbers, device)
    require("gather_conv", "weight", weight, (None, None, None), same, device)
    sites, taps = (x.shape[1], 1) if kernel_map is None else kernel_map.shape
    groups, depth, width = weight.shape
    if lists is None:
        sizes = (groups, taps * channels // max(groups, 1), width)
        require("gather_conv", "weight", weight, sizes, same, device)
    else:
        kept = depth // max(1, taps)
        require("gather_conv", "weight", weight, (1, taps * kept, None), same, device)
        require("gather_conv", "lists", lists, (None, depth), (torch.int32,), device)
        columns = width // max(1, len(lists))
        if columns * len(lists) != width or columns < 16 or columns & (columns - 1):
            raise OperandError(
                f"gather_conv: {len(lists)} lists do not serve {width} columns: 16, 32, 64 or "
                "another power of 2 have to share each"
            )
    require("gather_conv", "bias", bias, (groups * width,), same, device)
    require("gather_conv", "shift", shift, (batch, groups * width), same, device)
    require("gather_conv", "residual", residual, (batch, sites, groups * width), same, device)


def _depthwise(
    operands: Any, epilogue: Any, out: Tensor, sizes: tuple[int, ...], activation: str
) -> None:
    kernel_map, weight = operands[-2:]
    grid = _tiles(sizes[0], len(weight), _DEPTHWISE)
    shape = {"WIDTH": len(weight), "TAPS": kernel_map.shape[1], "ACTIVATION": activation}
    depthwise_kernel[grid](*operands, *epilogue, out, *sizes, **shape, **_DEPTHWISE, **_FUSED)


def _matmul(
    operands: Any,
    epilogue: Any,
    out: Tensor,
    sizes: tuple[int, ...],
    activation: str,
    splits: int,
    config: triton.Config | None,
) -> None:
    x, _, _, kernel_map, weight, lists = operands
    (rows, sites, *_), (groups, depth, width) = sizes, weight.shape
    taps = 1 if kernel_map is None else kernel_map.shape[1]
    parts = out if splits == 1 else out.new_empty((splits, *out.shape), dtype=torch.float32)
    shape = {"CHANNELS": depth // taps, "WIDTH": width, "GROUPS": groups, "TAPS": taps}
    per_list = 0 if lists is None else width // len(lists)
    shape |= {"INPUTS": x.shape[2] if per_list else 0, "PER_LIST": per_list}
    backends: Any = torch.backends
    library = backends.cuda.matmul if kernel_map is None else backends.cudnn.conv
    precision = precision_of(out.dtype, library)
    how = {"SPLITS": splits, "ACTIVATION": activation, "PRECISION": precision, **_FUSED}
    kernel, options = (_tuned, {}) if config is None else (matmul_kernel, config.all_kwargs())

    def programs(meta: dict[str, Any]) -> tuple[int, int, int]:
        down, across = _tiles(rows, width, meta)
        return down * across, groups, splits

    kernel[programs](*operands, *epilogue, parts, *sizes, **shape, **how, **options)
    if splits > 1:
        grid = _tiles(rows, groups * width, _REDUCE)
        shape = {"WIDTH": groups * width, "SPLITS": splits, "ACTIVATION": activation}
        reduce_kernel[grid](parts, *epilogue, out, rows, sites, **shape, **_REDUCE, **_FUSED)


def _tiles(rows: int, columns: int, meta: dict[str, Any]) -> tuple[int, int]:
    return triton.cdiv(rows, meta["BLOCK_M"]), triton.cdiv(columns, meta["BLOCK_N"])


def _splits(rows: int, columns: int, depth: int, processors: int) -> int:
    """Enough programs for two on every processor, each with a few steps to do: of the powers of
    two the best, or within a tenth of it, for the products of :func:`suited`."""
    tiles = triton.cdiv(rows, 128) * triton.cdiv(columns, 64)
    wanted = min(5 * processors // (2 * tiles), depth // (64 * _MIN_STEPS), _MAX_SPLITS)
    return 1 << (wanted.bit_length() - 1) if wanted > 1 else 1
