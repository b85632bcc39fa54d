"""Linear layers act on the last axis: packed values go through as they are."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..layout import Layout
from ..place import Place
from .base import Rule, layout_of, register, shape_of, source, static

aten = torch.ops.aten


@register(aten.linear)
class Linear(Rule):
    """``linear(x, weight, bias)`` with a plain last axis."""

    def layout(self, node: Node) -> Layout:
        static(node, "weight", "bias")
        return layout_of(source(node)).replace(-1, shape_of(node)[-1])

    def emit(self, node: Node, place: Place) -> Node:
        _, *parameters = node.args
        return place.call(node.target, place.packed(source(node)), *map(place.plain, parameters))
