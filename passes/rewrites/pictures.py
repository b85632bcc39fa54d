"""Operators on pictures whose rows and columns are not the last axes of four. Require layouts."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.fx import Node

from ..facts import facts
from ..layout import Layout
from ..rules.base import argument, shape_of, source
from .base import call, permuted, reshaped

aten = torch.ops.aten


def pad_picture(node: Node) -> Node | None:
    """pad of [..., H, W, ...] -> pad of [1, C, H, W]."""
    if node.target is not aten.pad.default or (axes := _elsewhere(node)) is None:
        return None
    rank, (y, x) = len(shape_of(node)), axes
    given = [*argument(node, "pad"), *[0] * (2 * rank)]
    pads = {dim: given[2 * (rank - 1 - dim) :][:2] for dim in range(rank)}
    others = [dim for dim in range(rank) if dim not in axes]
    if any(any(pads[dim]) for dim in others) or not any(pads[y] + pads[x]):
        return None
    how = argument(node, "mode"), argument(node, "value")
    image = call(
        node, aten.pad.default, _as_image(node, source(node), axes), pads[x] + pads[y], *how
    )
    return _back(node, image, axes)


def cut_picture(node: Node) -> Node | None:
    """Some rows or columns of [..., H, W, ...] -> those of [1, C, H, W]."""
    if node.target is not aten.slice.Tensor or (axes := _elsewhere(node)) is None:
        return None
    dim = argument(node, "dim") % len(shape_of(node))
    if dim not in axes:
        return None
    limits = argument(node, "start"), argument(node, "end"), argument(node, "step")
    image = _as_image(node, source(node), axes)
    return _back(node, call(node, aten.slice.Tensor, image, 2 + axes.index(dim), *limits), axes)


def turn_picture(node: Node) -> Node | None:
    """roll and flip of [..., H, W, ...] -> those of [1, C, H, W]."""
    if node.target not in (aten.roll.default, aten.flip.default):
        return None
    axes, dims = _elsewhere(node), [dim % len(shape_of(node)) for dim in argument(node, "dims")]
    if axes is None or not dims or not set(dims) <= set(axes):
        return None
    at = [2 + axes.index(dim) for dim in dims]
    image = _as_image(node, source(node), axes)
    return _back(node, call(node, node.target, image, *node.args[1:-1], at), axes)


def join_pictures(node: Node) -> Node | None:
    """cat of [..., H, W, ...] along rows or columns -> that of [1, C, H, W]."""
    if node.target is not aten.cat.default:
        return None
    parts: Any = node.args[0]
    known = [x for x in parts if isinstance(facts(x).layout, Layout)]
    axes, dim = _axes(known[0]) if known else None, argument(node, "dim") % len(shape_of(node))
    if axes is None or dim not in axes or any(_axes(x) != axes for x in known[1:]):
        return None
    images = [_as_image(node, x, axes) for x in parts]
    return _back(node, call(node, aten.cat.default, images, 2 + axes.index(dim)), axes)


def _elsewhere(node: Node) -> tuple[int, int] | None:
    """The axes of rows and columns of the operand, unless it is an image [N, C, H, W]."""
    return _axes(source(node))


def _axes(x: Node) -> tuple[int, int] | None:
    layout = facts(x).layout
    if not isinstance(layout, Layout) or (layout.is_image and len(layout.dims) == 4):
        return None
    names = [[axis.name for axis in dim] for dim in layout.dims]
    return (names.index(["y"]), names.index(["x"])) if ["y"] in names and ["x"] in names else None


def _as_image(node: Node, x: Node, axes: tuple[int, int]) -> Node:
    others = [dim for dim in range(len(shape_of(x))) if dim not in axes]
    image = permuted(node, x, [*others, *axes])
    return reshaped(node, image, [1, prod(shape_of(image)[:-2]), *shape_of(image)[-2:]])


def _back(node: Node, image: Node, axes: tuple[int, int]) -> Node:
    others = [dim for dim in range(len(shape_of(node))) if dim not in axes]
    lead = [shape_of(node)[dim] for dim in others]
    made = [*others, *axes]
    image = reshaped(node, image, [*lead, *shape_of(image)[-2:]])
    return permuted(node, image, [made.index(dim) for dim in range(len(made))])
