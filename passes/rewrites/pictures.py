"""Operators on pictures whose rows and columns are not the last axes of four. Require layouts."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.fx import Node

from ..facts import facts
from ..layout import Layout, Unmatched
from ..packing.items import leading
from ..rewrite import rewrite
from ..rules.base import argument, shape_of, source
from .base import call, permuted, reshaped

aten = torch.ops.aten


@rewrite(aten.pad.default)
def pad_picture(node: Node) -> Node:
    """pad of [..., H, W, ...] -> pad of [N, C, H, W]."""
    rank, (y, x) = len(shape_of(node)), (axes := _axes(source(node)))
    given = [*argument(node, "pad"), *[0] * (2 * rank)]
    pads = {dim: given[2 * (rank - 1 - dim) :][:2] for dim in range(rank)}
    others = [dim for dim in range(rank) if dim not in axes]
    if any(any(pads[dim]) for dim in others) or not any(pads[y] + pads[x]):
        raise Unmatched("it pads other axes than rows and columns")
    how = argument(node, "mode"), argument(node, "value")
    image = call(
        node, aten.pad.default, _as_image(node, source(node), axes), pads[x] + pads[y], *how
    )
    return _back(node, image, axes)


@rewrite(aten.slice.Tensor)
def cut_picture(node: Node) -> Node:
    """Some rows or columns of [..., H, W, ...] -> those of [N, C, H, W]."""
    axes, dim = _axes(source(node)), argument(node, "dim") % len(shape_of(node))
    if dim not in axes:
        raise Unmatched("it cuts neither rows nor columns")
    limits = argument(node, "start"), argument(node, "end"), argument(node, "step")
    image = _as_image(node, source(node), axes)
    return _back(node, call(node, aten.slice.Tensor, image, 2 + axes.index(dim), *limits), axes)


@rewrite(aten.roll.default, aten.flip.default)
def turn_picture(node: Node) -> Node:
    """roll and flip of [..., H, W, ...] -> those of [N, C, H, W]."""
    axes, dims = _axes(source(node)), [dim % len(shape_of(node)) for dim in argument(node, "dims")]
    if not dims or not set(dims) <= set(axes):
        raise Unmatched("it turns other axes than rows and columns")
    at = [2 + axes.index(dim) for dim in dims]
    image = _as_image(node, source(node), axes)
    return _back(node, call(node, node.target, image, *node.args[1:-1], at), axes)


@rewrite(aten.cat.default)
def join_pictures(node: Node) -> Node:
    """cat of [..., H, W, ...] along rows or columns -> that of [N, C, H, W]."""
    parts: Any = node.args[0]
    known = [x for x in parts if isinstance(facts(x).layout, Layout)]
    if not known:
        raise Unmatched("no part lies on a grid")
    axes, dim = _axes(known[0]), argument(node, "dim") % len(shape_of(node))
    if dim not in axes or any(_axes(x) != axes for x in known[1:]):
        raise Unmatched("it joins neither rows nor columns")
    images = [_as_image(node, x, axes) for x in parts]
    return _back(node, call(node, aten.cat.default, images, 2 + axes.index(dim)), axes)


def _axes(x: Node) -> tuple[int, int]:
    """The axes of rows and columns of a value, which is no image [N, C, H, W]."""
    layout = facts(x).layout
    if not isinstance(layout, Layout) or (layout.is_image and len(layout.dims) == 4):
        raise Unmatched("rows and columns are the last axes, or unknown")
    names = [[axis.name for axis in dim] for dim in layout.dims]
    if ["y"] not in names or ["x"] not in names:
        raise Unmatched("rows and columns are no axes of their own")
    return names.index(["y"]), names.index(["x"])


def _as_image(node: Node, x: Node, axes: tuple[int, int]) -> Node:
    others = [dim for dim in range(len(shape_of(x))) if dim not in axes]
    layout, image = facts(x).layout, permuted(node, x, [*others, *axes])
    items = leading(layout) if layout else 1
    lead = [items, prod(shape_of(image)[:-2]) // items]
    return reshaped(node, image, [*lead, *shape_of(image)[-2:]])


def _back(node: Node, image: Node, axes: tuple[int, int]) -> Node:
    others = [dim for dim in range(len(shape_of(node))) if dim not in axes]
    lead = [shape_of(node)[dim] for dim in others]
    made = [*others, *axes]
    image = reshaped(node, image, [*lead, *shape_of(image)[-2:]])
    return permuted(node, image, [made.index(dim) for dim in range(len(made))])
