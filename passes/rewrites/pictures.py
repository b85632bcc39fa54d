"""Operators on pictures whose rows and columns are not the last axes of four. Require layouts."""

from __future__ import annotations

from math import prod

import torch
from torch.fx import Node

from ..facts import facts
from ..items import leading
from ..layout import Layout, Unmatched
from ..rewrite import rewrite
from ..rules.base import argument, layout_of, shape_of, source
from .base import call, permuted, reshaped

aten = torch.ops.aten


@rewrite(aten.pad.default)
def pad_picture(node: Node) -> Node:
    """pad of [..., H, W, ...] -> pad of [N, C, H, W]."""
    rank, (y, x) = len(shape_of(node)), (axes := _elsewhere(node))
    given = [*argument(node, "pad"), *[0] * (2 * rank)]
    pads = {dim: given[2 * (rank - 1 - dim) :][:2] for dim in range(rank)}
    others = [dim for dim in range(rank) if dim not in axes]
    if any(any(pads[dim]) for dim in others) or not any(pads[y] + pads[x]):
        raise Unmatched("it pads other axes than rows and columns")
    how = argument(node, "mode"), argument(node, "value")
    image = call(node, aten.pad.default, _as_image(node, axes), pads[x] + pads[y], *how)
    return _back(node, image, axes)


@rewrite(aten.slice.Tensor)
def stride_picture(node: Node) -> Node:
    """Every so many rows or columns of [..., H, W, ...] -> those of [N, C, H, W]."""
    axes, dim = _elsewhere(node), argument(node, "dim") % len(shape_of(node))
    if argument(node, "step") == 1 or dim not in axes:
        raise Unmatched("it strides over neither rows nor columns")
    limits = argument(node, "start"), argument(node, "end"), argument(node, "step")
    image = _as_image(node, axes)
    return _back(node, call(node, aten.slice.Tensor, image, 2 + axes.index(dim), *limits), axes)


def _elsewhere(node: Node) -> tuple[int, int]:
    """The axes of rows and columns of the operand, which is no image [N, C, H, W]."""
    layout = facts(source(node)).layout
    if not isinstance(layout, Layout) or (layout.is_image and len(layout.dims) == 4):
        raise Unmatched("rows and columns are the last axes, or unknown")
    names = [[axis.name for axis in dim] for dim in layout.dims]
    if ["y"] not in names or ["x"] not in names:
        raise Unmatched("rows and columns are no axes of their own")
    return names.index(["y"]), names.index(["x"])


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
