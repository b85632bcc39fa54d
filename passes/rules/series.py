"""Operators along an axis of their own, over frames say: every site is an item of the batch."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..layout import Layout, Unmatched, plain
from ..packing.place import Place
from .base import Rule, layout_of, register, require_unedited, shape_of, source

aten = torch.ops.aten


@register(
    *(aten.conv1d, aten.conv_transpose1d, aten.avg_pool1d, aten.max_pool1d),
    *(aten.upsample_nearest1d, aten.upsample_linear1d),
)
class Series(Rule):
    """Convolutions, pools and resizing of [sites, C, T]."""

    def layout(self, node: Node) -> Layout:
        require_unedited(node, "weight", "bias")
        layout = layout_of(source(node))
        if not layout.packable or not layout.merged or layout.site_dim != 0:
            raise Unmatched("the sites are not the batch")
        return Layout((layout.dims[0], *map(plain, shape_of(node)[1:])))

    def emit(self, node: Node, place: Place) -> Node:
        x, *rest = node.args
        assert isinstance(x, Node)
        return place.call(node.target, place.packed(x), *map(place.plain, rest), **node.kwargs)
