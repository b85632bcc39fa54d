"""Operands that differ by the item of a batch, for packed values, which hold the sites of all.

``items`` int64 [S] says whose site each is. Products take what :func:`.tables.lanes` gives: the
rows of each item, side by side (``rows``), and where in these a row stands (``places``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .operators import declare, exporting


def at_items(statistic: Tensor, items: Tensor | None, like: Tensor) -> Tensor:
    """Of each site of packed ``like`` [N, C, ..., S] that of its item: [items * N, C] ->
    [N, ..., S, C]; without ``items`` [N, C] -> [N, ..., 1, C]."""
    batch, channels, *between = like.shape[:-1]
    ones = [1] * len(between)
    if items is None:
        return statistic.view(batch, *ones, 1, channels)
    taken = statistic.view(-1, batch, channels).index_select(0, items)
    return taken.view(-1, batch, *ones, channels).movedim(0, -2)


def sum_by_item(x: Tensor, items: Tensor, count: int) -> Tensor:
    """Sums over the sites of each of ``count`` items: [N, C, ..., S] -> [count * N, C]."""
    rows = x.flatten(2, -2).sum(2) if x.dim() > 3 else x
    rows = rows.movedim(-1, 0).flatten(1)
    if exporting():
        return _sum_spread(rows, items, count).view(-1, x.shape[1])
    sums: Tensor = torch.ops.sparsify.sum_by_item(rows, items, count)
    return sums.view(-1, x.shape[1])


def _sum_spread(rows: Tensor, items: Tensor, count: int) -> Tensor:
    """By stock operators, as a product."""
    own = torch.arange(count, device=rows.device).unsqueeze(1) == items
    return own.to(rows.dtype) @ rows


def _sum_cpu(rows: Tensor, items: Tensor, count: int) -> Tensor:
    """Of each item at once, where its rows follow each other (2000 rows of 192 channels: 21 us,
    against 56 for the product)."""
    if bool((items.diff() < 0).any()):
        return _sum_spread(rows, items, count)
    ends = torch.searchsorted(items, torch.arange(count, device=items.device), right=True).tolist()
    parts = zip([0, *ends], ends, strict=False)
    return torch.stack([rows[start:stop].sum(0) for start, stop in parts])


def _sum_fake(rows: Tensor, items: Tensor, count: int) -> Tensor:
    return rows.new_empty((count, rows.shape[1]))


_SUM = "(Tensor rows, Tensor items, int count) -> Tensor"
declare("sum_by_item", _SUM, _sum_cpu, _sum_fake, _sum_spread)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    places: Tensor,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """``scaled_dot_product_attention`` of packed queries [..., S, d] over the keys and values
    [items, ..., L, d] of their items."""
    how = (rows, places, scale, enable_gqa)
    if exporting():
        return _attention_spread(query, key, value, mask, *how)
    out: Tensor = torch.ops.sparsify.attention_by_item(query, key, value, mask, *how)
    return out


def _attention_spread(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    places: Tensor,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    """By stock operators, each item with as many queries as the one that has most."""
    items = rows.shape[1]
    query_rows = spread(query, rows, -2)
    if mask is not None:
        mask = mask.view(*[1] * (query.dim() - mask.dim()), *mask.shape)
        mask = mask.unsqueeze(0) if mask.shape[-2] == 1 else spread(mask, rows, -2)

    def four_axes(x: Tensor) -> Tensor:
        """ONNX has no attention with more."""
        return x if x.dim() == 4 else x.expand(items, *x.shape[1:]).flatten(0, 1)

    out = F.scaled_dot_product_attention(
        *(four_axes(query_rows), four_axes(key), four_axes(value)),
        None if mask is None else four_axes(mask),
        scale=scale,
        enable_gqa=enable_gqa,
    )
    return collect(out.view(items, *query_rows.shape[1:-1], -1), places, -2)


def _attention_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    rows: Tensor,
    places: Tensor,
    scale: float | None,
    enable_gqa: bool,
) -> Tensor:
    out = _attention_fake(query, key, value)
    for item, own in _rows_of(rows):
        allowed = mask if mask is None or mask.shape[-2] == 1 else _part(mask, own, -2)
        made = F.scaled_dot_product_attention(
            *(_part(query, own, -2), _of(key, item), _of(value, item), allowed),
            scale=scale,
            enable_gqa=enable_gqa,
        )
        out.index_copy_(-2, own, made)
    return out


def _attention_fake(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> Tensor:
    """Sites before heads in memory, as the library's kernels have them."""
    shape = [*query.shape[:-1], value.shape[-1]]
    shape[-3], shape[-2] = shape[-2], shape[-3]
    return query.new_empty(shape).transpose(-3, -2)


_SCHEMA = (
    "(Tensor query, Tensor key, Tensor value, Tensor? mask, Tensor rows, Tensor places, "
    "float? scale, bool enable_gqa) -> Tensor"
)
declare("attention_by_item", _SCHEMA, _attention_cpu, _attention_fake, _attention_spread)


def matmul(first: Tensor, second: Tensor, rows: Tensor, places: Tensor, on_columns: bool) -> Tensor:
    """A product of which one factor is packed, the other that of the items [items, ..., :, :].

    The sites are the rows of the first, packed factor, or the columns of the second.
    """
    if exporting():
        return _matmul_spread(first, second, rows, places, on_columns)
    out: Tensor = torch.ops.sparsify.matmul_by_item(first, second, rows, places, on_columns)
    return out


def _matmul_spread(
    first: Tensor, second: Tensor, rows: Tensor, places: Tensor, on_columns: bool
) -> Tensor:
    if on_columns:
        return collect(first @ spread(second, rows, -1), places, -1)
    return collect(spread(first, rows, -2) @ second, places, -2)


def _matmul_cpu(
    first: Tensor, second: Tensor, rows: Tensor, places: Tensor, on_columns: bool
) -> Tensor:
    out = _matmul_fake(first, second, rows, places, on_columns)
    for item, own in _rows_of(rows):
        if on_columns:
            out.index_copy_(-1, own, _of(first, item) @ _part(second, own, -1))
        else:
            out.index_copy_(-2, own, _part(first, own, -2) @ _of(second, item))
    return out


def _matmul_fake(
    first: Tensor, second: Tensor, rows: Tensor, places: Tensor, on_columns: bool
) -> Tensor:
    leads = (
        (first.shape[1:-2], second.shape[:-2])
        if on_columns
        else (first.shape[:-2], second.shape[1:-2])
    )
    lead = torch.broadcast_shapes(*leads)
    return first.new_empty((*lead, first.shape[-2], second.shape[-1]))


_MATMUL = "(Tensor first, Tensor second, Tensor rows, Tensor places, bool on_columns) -> Tensor"
declare("matmul_by_item", _MATMUL, _matmul_cpu, _matmul_fake, _matmul_spread)


def grid_sample(image: Tensor, at: Tensor, rows: Tensor, places: Tensor, *how: Any) -> Tensor:
    """:func:`.ops.grid_sample` of packed points [N, S, 2], in the images [items * N, C, H, W] of
    their items."""
    points = spread(at, rows, -2)
    taken = ops.grid_sample(image, points.flatten(0, 1), *how)
    return collect(taken.unflatten(0, points.shape[:2]), places, -1)


def _rows_of(rows: Tensor) -> Iterator[tuple[int, Tensor]]:
    """The items with sites, and these."""
    for item, own in enumerate(rows.unbind(1)):
        own = own[own >= 0]
        if len(own):
            yield item, own


def _part(x: Tensor, own: Tensor, dim: int) -> Tensor:
    """``x`` at ascending rows: a view where they follow each other."""
    first, count = int(own[0]), len(own)
    if int(own[-1]) - first + 1 == count:
        return x.narrow(dim, first, count)
    return x.index_select(dim, own)


def _of(x: Tensor, item: int) -> Tensor:
    """What all items share has one entry."""
    return x[min(item, len(x) - 1)]


def spread(x: Tensor, rows: Tensor, dim: int) -> Tensor:
    """Packed [..., S, ...] -> [items, ..., most, ...]: where an item has fewer rows, the first."""
    taken = x.index_select(dim, rows.clamp(min=0).flatten())
    apart: Tensor = taken.unflatten(dim, (-1, rows.shape[1]))
    return apart.movedim(dim, 0)


def collect(x: Tensor, places: Tensor, dim: int) -> Tensor:
    """The way back from :func:`spread`."""
    apart = x.movedim(0, dim)
    return apart.flatten(apart.dim() + dim - 1, apart.dim() + dim).index_select(dim, places)
