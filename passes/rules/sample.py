"""Values taken from anywhere in a picture."""

from __future__ import annotations

import torch
from sparsify.codegen import by_item, ops, tables
from torch.fx import Node

from ..layout import Layout, plain
from ..packing.place import Place
from .base import Plan, Rule, image_layout, layout_of, register, require_constant, shape_of, source

aten = torch.ops.aten


@register(aten.grid_sampler, aten.grid_sampler_2d)
class GridSample(Rule):
    """``grid_sampler(image, grid)`` at constant places, grid [N, H, W, 2]."""

    def layout(self, node: Node) -> Layout:
        require_constant(node, "grid")
        return image_layout(node).with_image(shape_of(node))

    def reached(self, node: Node, mask: Node, plan: Plan) -> Node:
        return plan.call(tables.sampled, mask, *node.args[1:])

    def emit(self, node: Node, place: Place) -> Node:
        image, layout = place.materialise(source(node)), layout_of(node)
        points = Layout((layout.dims[0], *layout.dims[2:], plain(2)))
        at = place.aligned(source(node, 1), points)
        if place.items == 1:
            return place.call(ops.grid_sample, image, at, *node.args[2:])
        return place.call(by_item.grid_sample, image, at, *place.lanes(node), *node.args[2:])
