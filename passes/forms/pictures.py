"""Operators on pictures whose rows and columns are not the last axes of four."""

from __future__ import annotations

from math import prod

import torch
from torch.fx import Node

from ..layout import Layout
from ..rules.base import argument, shape_of, source
from .base import call, permuted, reshaped

aten = torch.ops.aten


def pad_picture(node: Node) -> Node | None:
    """pad of [..., H, W, ...] -> pad of [1, C, H, W]. Requires layouts."""
    if node.target is not aten.pad.default:
        return None
    layout, rank = source(node).meta["layout"], len(shape_of(node))
    if not isinstance(layout, Layout) or (layout.is_image and rank == 4):
        return None
    names = [[axis.name for axis in dim] for dim in layout.dims]
    if ["y"] not in names or ["x"] not in names:
        return None
    y, x = names.index(["y"]), names.index(["x"])
    given = [*argument(node, "pad"), *[0] * (2 * rank)]
    pads = {dim: given[2 * (rank - 1 - dim) :][:2] for dim in range(rank)}
    others = [dim for dim in range(rank) if dim not in (y, x)]
    if any(any(pads[dim]) for dim in others) or not any(pads[y] + pads[x]):
        return None
    image = permuted(node, source(node), [*others, y, x])
    lead = [shape_of(node)[dim] for dim in others]
    image = reshaped(node, image, [1, prod(lead), *shape_of(image)[-2:]])
    how = argument(node, "mode"), argument(node, "value")
    image = call(node, aten.pad.default, image, pads[x] + pads[y], *how)
    image = reshaped(node, image, [*lead, *shape_of(image)[-2:]])
    made = [*others, y, x]
    return permuted(node, image, [made.index(dim) for dim in range(rank)])
