"""Operators on pictures whose rows and columns are not the last axes of four. Require layouts."""

from __future__ import annotations

from math import prod

import torch
from torch.fx import Node

from ..facts import facts
from ..items import leading
from ..layout import Layout
from ..rules.base import argument, layout_of, shape_of, source
from .base import call, permuted, reshaped

aten = torch.ops.aten


def pad_picture(node: Node) -> Node | None:
    """pad of [..., H, W, ...] -> pad of [N, C, H, W]."""
    if node.target is not aten.pad.default or (axes := _elsewhere(node)) is None:
        return None
    rank, (y, x) = len(shape_of(node)), axes
    given = [*argument(node, "pad"), *[0] * (2 * rank)]
    pads = {dim: given[2 * (rank - 1 - dim) :][:2] for dim in range(rank)}
    others = [dim for dim in range(rank) if dim not in axes]
    if any(any(pads[dim]) for dim in others) or not any(pads[y] + pads[x]):
        return None
    how = argument(node, "mode"), argument(node, "value")
    image = call(node, aten.pad.default, _as_image(node, axes), pads[x] + pads[y], *how)
    return _back(node, image, axes)


def stride_picture(node: Node) -> Node | None:
    """Every so many rows or columns of [..., H, W, ...] -> those of [N, C, H, W]."""
    if node.target is not aten.slice.Tensor or argument(node, "step") == 1:
        return None
    axes, dim = _elsewhere(node), argument(node, "dim") % len(shape_of(node))
    if axes is None or dim not in axes:
        return None
    limits = argument(node, "start"), argument(node, "end"), argument(node, "step")
    image = _as_image(node, axes)
    return _back(node, call(node, aten.slice.Tensor, image, 2 + axes.index(dim), *limits), axes)


def _elsewhere(node: Node) -> tuple[int, int] | None:
    """The axes of rows and columns of the operand, unless it is an image [N, C, H, W]."""
    layout = facts(source(node)).layout
    if not isinstance(layout, Layout) or (layout.is_image and len(layout.dims) == 4):
        return None
    names = [[axis.name for axis in dim] for dim in layout.dims]
    return (names.index(["y"]), names.index(["x"])) if ["y"] in names and ["x"] in names else None


def _as_image(node: Node, axes: tuple[int, int]) -> Node:
    others = [dim for dim in range(len(shape_of(source(node)))) if dim not in axes]
    image, items = permuted(node, source(node), [*others, *axes]), leading(layout_of(source(node)))
    lead = [items, prod(shape_of(image)[:-2]) // items]
    return reshaped(node, image, [*lead, *shape_of(image)[-2:]])


def _back(node: Node, image: Node, axes: tuple[int, int]) -> Node:
    others = [dim for dim in range(len(shape_of(node))) if dim not in axes]
    lead = [shape_of(node)[dim] for dim in others]
    made = [*others, *axes]
    image = reshaped(node, image, [*lead, *shape_of(image)[-2:]])
    return permuted(node, image, [made.index(dim) for dim in range(len(made))])
