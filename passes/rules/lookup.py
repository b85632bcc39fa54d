"""Code books: embeddings of numbers, distances to the entries, the nearest one."""

from __future__ import annotations

import torch
from sparsify.codegen import opaque
from torch.fx import Node

from ..layout import Layout, Unmatched, plain
from ..packing.items import differs
from ..packing.place import Place
from .base import Rule, argument, layout_of, register, require_unedited, shape_of, source
from .pointwise import Reduce

aten = torch.ops.aten


@register(aten.embedding)
class Embedding(Rule):
    """``embedding(weight, numbers)``: numbers [...] -> [..., C]."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        require_unedited(node, "weight")
        width = node.meta["val"].shape[-1]
        return Layout((*layout_of(source(node, 1)).dims, plain(width)))

    def emit(self, node: Node, place: Place) -> Node:
        weight, numbers = place.plain(source(node)), place.packed(source(node, 1))
        return place.call(aten.embedding.default, weight, numbers)


@register(aten.cdist)
class Distances(Rule):
    """``cdist(x, codes)``: rows x [..., L, C] on sites, codes [..., K, C] -> [..., L, K]."""

    def layout(self, node: Node) -> Layout:
        require_unedited(node, "x2")
        layout = layout_of(source(node))
        if not layout.packable or not layout.merged or layout.site_dim != len(layout.dims) - 2:
            raise Unmatched("the sites are not the rows")
        if differs(layout, shape_of(source(node, 1))):
            raise Unmatched("codes of their own for each item of the batch")
        return layout.replace(-1, node.meta["val"].shape[-1])

    def emit(self, node: Node, place: Place) -> Node:
        rows, codes = place.packed(source(node)), place.plain(source(node, 1))
        options = (argument(node, "p", 2.0), argument(node, "compute_mode"))
        return place.call(opaque.cdist, rows, codes, *options)


@register(aten.argmin, aten.argmax)
class Nearest(Reduce):
    """The index of the least or greatest along a plain axis."""

    def emit(self, node: Node, place: Place) -> Node:
        dim = layout_of(source(node)).packed_dim(argument(node, "dim"))
        keepdim = argument(node, "keepdim", False)
        return place.call(node.target, place.packed(source(node)), dim, keepdim)
