"""Triton kernel of :mod:`sparsify.codegen.group_statistics`: one pass, one launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..errors import OperandError
from ..operators import KERNEL_DTYPES
from ..operators.operands import require

_BLOCK_ELEMENTS = 4096


@triton.jit(do_not_specialize=["rows", "old_rows"])
def statistics_kernel(
    x, old, mean, rstd, sites, items, new_mean, new_rstd, rows, old_rows, count, eps,
    GROUPS: tl.constexpr, CHANNELS: tl.constexpr, IN_PLACE: tl.constexpr,
    BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """One group of one item: x [N, rows, GROUPS * CHANNELS], old [N, old_rows, ...], all of
    mean, rstd, new_mean, new_rstd [N, GROUPS]; ``count`` values make the statistics. With ``items``
    [rows], which say whose rows these are, x and old have the rows of all items in one."""
    at, width = tl.program_id(0), GROUPS * CHANNELS
    item, group = (at // GROUPS).to(tl.int64), at % GROUPS
    channel = tl.arange(0, BLOCK_C)
    column = group * CHANNELS + channel
    centre = tl.load(mean + at).to(tl.float32)
    scale = tl.load(rstd + at).to(tl.float32)
    first = tl.zeros((BLOCK_S, BLOCK_C), dtype=tl.float32)
    second = tl.zeros((BLOCK_S, BLOCK_C), dtype=tl.float32)
    for start in range(0, rows, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        site = tl.load(sites + s, mask=s < rows, other=-1)
        before = tl.load(sites + s - 1, mask=(s > 0) & (s < rows), other=-1)
        inside = ((s < rows) & (site != before))[:, None] & (channel < CHANNELS)[None, :]
        source = site if IN_PLACE else s.to(tl.int64)
        if items is None:
            new_row, old_row = item * rows + s, item * old_rows + source
        else:
            new_row, old_row = s.to(tl.int64), source
            owner = tl.load(items + s, mask=s < rows, other=-1)
            inside = inside & (owner == item)[:, None]
        new_at = new_row[:, None] * width + column[None, :]
        old_at = old_row[:, None] * width + column[None, :]
        new = tl.load(x + new_at, mask=inside, other=0.0).to(tl.float32)
        was = tl.load(old + old_at, mask=inside, other=0.0).to(tl.float32)
        change = new - was
        first += change
        second += change * ((new - centre) + (was - centre))
    moved = tl.sum(tl.sum(first, 1), 0) / count
    spread = tl.sum(tl.sum(second, 1), 0) / count
    variance = tl.maximum(1.0 / (scale * scale) + spread - moved * moved, eps)
    tl.store(new_mean + at, (centre + moved).to(new_mean.dtype.element_ty))
    tl.store(new_rstd + at, (1.0 / tl.sqrt(variance)).to(new_rstd.dtype.element_ty))


def launch(
    x: Tensor,
    old: Tensor,
    in_place: bool,
    mean: Tensor,
    rstd: Tensor,
    size: int,
    eps: float,
    sites: Tensor,
    items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`sparsify.codegen.group_statistics.reference`. No table is read on the host. Raises
    :class:`OperandError`."""
    _check(x, old, in_place, mean, rstd, sites, items)
    x, old, mean, rstd = (t.contiguous() for t in (x, old, mean, rstd))
    (_, rows, width), (batch, groups) = x.shape, mean.shape
    channels = width // groups
    updated = torch.empty_like(mean), torch.empty_like(rstd)
    owners = None if items is None else items.contiguous()
    block_c = triton.next_power_of_2(channels)
    with torch.cuda.device_of(x):
        statistics_kernel[(batch * groups,)](
            *(x, old, mean, rstd, sites.contiguous(), owners, *updated),
            *(rows, old.shape[1], float(channels * size), eps),
            **{"GROUPS": groups, "CHANNELS": channels, "IN_PLACE": in_place},
            **{"BLOCK_S": max(1, _BLOCK_ELEMENTS // block_c), "BLOCK_C": block_c},
            num_warps=8,
        )
    return updated


def _check(
    x: Tensor,
    old: Tensor,
    in_place: bool,
    mean: Tensor,
    rstd: Tensor,
    sites: Tensor,
    items: Tensor | None,
) -> None:
    """Raises :class:`OperandError` unless all of it is what the kernel takes it for."""
    device = x.device
    require("group_statistics", "x", x, (None, None, None), KERNEL_DTYPES, device)
    batch, rows, width = x.shape
    sizes = (batch, None if in_place else rows, width)
    require("group_statistics", "old", old, sizes, KERNEL_DTYPES, device)
    if items is not None:
        require("group_statistics", "x", x, (1, rows, width), KERNEL_DTYPES, device)
        require("group_statistics", "items", items, (rows,), (torch.int64,), device)
    recorded = (batch if items is None else None, None)
    require("group_statistics", "mean", mean, recorded, KERNEL_DTYPES, device)
    require("group_statistics", "rstd", rstd, tuple(mean.shape), KERNEL_DTYPES, device)
    require("group_statistics", "sites", sites, (rows,), (torch.int64,), device)
    if not mean.shape[1] or width % mean.shape[1]:
        raise OperandError(
            f"group_statistics: {width} channels are not {mean.shape[1]} groups of as many: "
            "hand it the statistics of these channels"
        )
