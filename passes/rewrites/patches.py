"""Patches, windows and blocks cut by a reshape -> unshuffle of the picture, and the way back.

So the patches of a transformer lie on the coarse grid, and its picture on the fine one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from sparsify.codegen import ops
from torch.fx import Node

from ..facts import facts
from ..layout import Layout, Unmatched
from ..packing.items import leading
from ..rewrite import rewrite
from ..rules.base import shape_of, source
from .base import call, permuted, reshaped

aten = torch.ops.aten


@dataclass(frozen=True)
class Cut:
    """``whole`` [..., H, W, ...] is ``parts`` [..., h, p, w, q, ...], h at ``axis``."""

    whole: list[int]
    rows: int
    parts: list[int]
    axis: int

    @property
    def patch(self) -> tuple[int, int]:
        return self.parts[self.axis + 1], self.parts[self.axis + 3]

    @property
    def beside(self) -> list[int]:
        """Sizes of the axes that are no part of the picture."""
        return [*self.whole[: self.rows], *self.whole[self.rows + 2 :]]

    def items(self, layout: Layout) -> int:
        """How many items of a batch the first of these begins with."""
        items = leading(layout)
        return items if self.rows and self.axis and self.whole[0] % items == 0 else 1


@rewrite(aten.reshape.default)
def patches(node: Node) -> Node:
    """Reshape [..., H, W, ...] -> [..., h, p, w, q, ...], or the way back, of a grid."""
    layout = facts(source(node)).layout
    if not isinstance(layout, Layout) or layout.grid is None:
        raise Unmatched("the operand lies on no grid")
    sizes, names = _unmerged(layout)
    if not {"y", "x"} <= set(names):
        raise Unmatched("the operand has no rows and columns")
    rows, columns = names.index("y"), names.index("x")
    if columns not in (rows + 1, rows + 2):
        raise Unmatched("rows and columns stand apart")
    if columns == rows + 1 and (cut := _cut(sizes, rows, shape_of(node))):
        return _to_patches(node, cut, cut.items(layout))
    whole = _joined(sizes, rows, columns, shape_of(node))
    cut = _cut(whole[0], whole[1], sizes) if whole else None
    if cut is None:
        raise Unmatched("rows and columns are not cut into patches, nor joined of them")
    return _from_patches(node, cut, cut.items(layout))


def _unmerged(layout: Layout) -> tuple[list[int], list[str]]:
    """Sizes and names of the axes but units, with rows and columns of tokens apart."""
    axes = []
    for dim in layout.dims:
        if any(axis.name in ("y", "x") for axis in dim):
            axes += [(axis.size, axis.name) for axis in dim]
        else:
            axes.append((prod(axis.size for axis in dim), ""))
    axes = [(size, name) for size, name in axes if size > 1]
    return [size for size, _ in axes], [name for _, name in axes]


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


def _cut(whole: Sequence[int], rows: int, parts: Sequence[int]) -> Cut | None:
    """How ``parts`` cut the picture at ``rows`` of ``whole``, if they do; without unit axes."""
    groups, axis = _factors(whole, parts), 0
    sizes: list[int] = []
    if groups is None or rows + 1 >= len(whole):
        return None
    for dim, group in enumerate(groups):
        found = [parts[i] for i in group if parts[i] > 1]
        if dim in (rows, rows + 1):
            axis = len(sizes) if dim == rows else axis
            if not 0 < len(found) <= 2:
                return None
            found = [*found, 1][:2]
        sizes += found
    cut = Cut(list(whole), rows, sizes, axis)
    return None if cut.patch == (1, 1) else cut


def _joined(parts: list[int], y: int, x: int, whole: Sequence[int]) -> tuple[list[int], int] | None:
    """``whole`` with tokens as rows and columns, and where the rows are; without unit axes."""
    whole = [size for size in whole if size > 1]
    groups = _factors(whole, parts)
    if groups is None:
        return None
    sizes: list[int] = []
    for size, group in zip(whole, groups, strict=True):
        if y in group and x in group:
            before = prod(parts[i] for i in group if i < x)
            lead = prod(parts[i] for i in group if i < y)
            sizes += [lead] * (lead > 1) + [before // lead, size // before]
        else:
            sizes.append(size)
    rows = [index for index, group in enumerate(_factors(sizes, parts) or []) if y in group]
    return (sizes, rows[0]) if rows else None


def _to_patches(node: Node, cut: Cut, items: int) -> Node:
    rank, rows, at = len(cut.whole), cut.rows, cut.axis
    x = reshaped(node, source(node), cut.whole)
    others = [dim for dim in range(rank) if dim not in (rows, rows + 1)]
    x = permuted(node, x, [*others, rows, rows + 1])
    x = reshaped(node, x, [items, prod(cut.beside) // items, *cut.whole[rows : rows + 2]])
    x = call(node, ops.unshuffle, x, *cut.patch)
    rest = [dim for dim in range(len(cut.parts)) if dim not in range(at, at + 4)]
    made = [*rest, at + 1, at + 3, at, at + 2]
    x = reshaped(node, x, [cut.parts[dim] for dim in made])
    x = permuted(node, x, [made.index(dim) for dim in range(len(made))])
    return reshaped(node, x, shape_of(node))


def _from_patches(node: Node, cut: Cut, items: int) -> Node:
    rank, rows, at = len(cut.whole), cut.rows, cut.axis
    x = reshaped(node, source(node), cut.parts)
    rest = [dim for dim in range(len(cut.parts)) if dim not in range(at, at + 4)]
    x = permuted(node, x, [*rest, at + 1, at + 3, at, at + 2])
    sites = cut.parts[at], cut.parts[at + 2]
    x = reshaped(node, x, [items, prod(cut.beside) * prod(cut.patch) // items, *sites])
    x = call(node, ops.shuffle, x, *cut.patch)
    made = [dim for dim in range(rank) if dim not in (rows, rows + 1)] + [rows, rows + 1]
    x = reshaped(node, x, [cut.whole[dim] for dim in made])
    x = permuted(node, x, [made.index(dim) for dim in range(rank)])
    return reshaped(node, x, shape_of(node))
