"""Patches, windows and blocks cut by a reshape -> pixel unshuffle, and the way back.

So the patches of a transformer lie on the coarse grid, and its picture on the fine one.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch.fx import Node

from ..rules.base import permutation, shape_of, source
from .base import call

aten = torch.ops.aten


def patches(node: Node) -> Node | None:
    """Reshape [..., H, W, ...] -> [..., h, p, w, p, ...], or the way back."""
    if node.target is not aten.reshape.default:
        return None
    before, after = shape_of(source(node)), shape_of(node)
    if (at := _patched_at(before, after)) is not None:
        return _to_patches(node, *at)
    if (at := _patched_at(after, before)) is not None:
        return _from_patches(node, *at)
    return None


def _factors(whole: Sequence[int], parts: Sequence[int]) -> list[list[int]] | None:
    """For each axis of ``whole`` the axes of ``parts`` that it is cut into."""
    groups: list[list[int]] = []
    index = 0
    for size in whole:
        group: list[int] = []
        while prod(parts[i] for i in group) < size and index < len(parts):
            group.append(index)
            index += 1
        if prod(parts[i] for i in group) != size:
            return None
        groups.append(group)
    return groups


def _patched_at(whole: Sequence[int], parts: Sequence[int]) -> tuple[int, list[int]] | None:
    """The axis of rows in ``whole`` (columns follow), and the axes [h, p, w, p] of ``parts``."""
    groups = _factors(whole, parts)
    if groups is None:
        return None
    cut = [[i for i in group if parts[i] > 1] for group in groups]
    for rows in reversed(range(len(cut) - 1)):
        axes = cut[rows] + cut[rows + 1]
        if len(cut[rows]) == len(cut[rows + 1]) == 2 and parts[axes[1]] == parts[axes[3]]:
            return rows, axes
    return None


def _to_patches(node: Node, rows: int, axes: list[int]) -> Node:
    before, after = shape_of(source(node)), shape_of(node)
    others = [dim for dim in range(len(before)) if dim not in (rows, rows + 1)]
    x = _permuted(node, source(node), [*others, rows, rows + 1])
    lead = [before[dim] for dim in others]
    x = _reshaped(node, x, [*_two(lead), *before[rows : rows + 2]])
    x = call(node, aten.pixel_unshuffle.default, x, after[axes[1]])
    rest = [dim for dim in range(len(after)) if dim not in axes]
    high, patch, wide, _ = (after[dim] for dim in axes)
    x = _reshaped(node, x, [*(after[dim] for dim in rest), patch, patch, high, wide])
    made = [*rest, axes[1], axes[3], axes[0], axes[2]]
    return _permuted(node, x, [made.index(dim) for dim in range(len(after))])


def _from_patches(node: Node, rows: int, axes: list[int]) -> Node:
    before, after = shape_of(source(node)), shape_of(node)
    rest = [dim for dim in range(len(before)) if dim not in axes]
    x = _permuted(node, source(node), [*rest, axes[1], axes[3], axes[0], axes[2]])
    others = [dim for dim in range(len(after)) if dim not in (rows, rows + 1)]
    lead = [after[dim] for dim in others]
    high, patch, wide, _ = (before[dim] for dim in axes)
    batch, channels = _two(lead)
    x = _reshaped(node, x, [batch, channels * patch * patch, high, wide])
    x = call(node, aten.pixel_shuffle.default, x, patch)
    x = _reshaped(node, x, [*lead, *after[rows : rows + 2]])
    made = [*others, rows, rows + 1]
    return _permuted(node, x, [made.index(dim) for dim in range(len(after))])


def _two(lead: list[int]) -> tuple[int, int]:
    """The axes before an image as batch and channels."""
    return (lead[0], prod(lead[1:])) if len(lead) > 1 else (1, prod(lead))


def _permuted(node: Node, x: Node, order: list[int]) -> Node:
    return x if order == sorted(order) else call(node, aten.permute.default, x, order)


def _reshaped(node: Node, x: Node, shape: Sequence[int]) -> Node:
    same = shape_of(x) == tuple(shape)
    return x if same else call(node, aten.reshape.default, x, list(shape))


def unit_axes(node: Node) -> Node | None:
    """permute of a reshape that only adds or drops axes of size one -> reshape of a permute."""
    order = permutation(node)
    if order is None or source(node).target is not aten.reshape.default:
        return None
    inner = source(node)
    before, middle = shape_of(source(inner)), shape_of(inner)
    kept = [dim for dim, size in enumerate(before) if size > 1]
    if [before[dim] for dim in kept] != [size for size in middle if size > 1]:
        return None
    place = dict(zip([dim for dim, size in enumerate(middle) if size > 1], kept, strict=True))
    moved = [place[dim] for dim in order if dim in place]
    units = [dim for dim in range(len(before)) if dim not in kept]
    x = _permuted(node, source(inner), [*units, *moved])
    return _reshaped(node, x, shape_of(node))
