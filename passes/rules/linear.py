"""Linear layers act on the last axis: packed values go through as they are."""

from __future__ import annotations

import torch
from sparsify.codegen import products
from sparsify.codegen.prepack import prepack_linear
from torch.fx import Node

from ..layout import Layout, Unmatched
from ..packing.place import Place
from .base import Rule, argument, layout_of, register, require_unedited, shape_of, source

aten = torch.ops.aten


@register(aten.linear)
class Linear(Rule):
    """``linear(x, weight, bias)`` with a plain last axis."""

    def layout(self, node: Node) -> Layout:
        require_unedited(node, "weight", "bias")
        if len(shape_of(source(node, 1))) != 2:
            raise Unmatched("the weight is not a matrix")
        return layout_of(source(node)).replace(-1, shape_of(node)[-1])

    def emit(self, node: Node, place: Place) -> Node:
        return self._on(place.packed(source(node)), node, place)

    def emit_all(self, node: Node, place: Place) -> Node:
        return self._on(place.materialise(source(node)), node, place)

    def _on(self, rows: Node, node: Node, place: Place) -> Node:
        format = place.costs.linear_format(node, source(node, 1))
        weight = place.prepack(source(node, 1), prepack_linear, format=format)
        bias = place.plain(argument(node, "bias"))
        return place.call(products.linear, rows, weight, bias, format=format)
