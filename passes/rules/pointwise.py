"""Pointwise operators and softmax or reductions over plain axes: nothing to gather."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..layout import Layout, Unmatched, broadcast
from ..packing.place import Place
from .base import Rule, argument, is_edited, layout_of, register, shape_of, source

aten = torch.ops.aten


@register("pointwise", aten._to_copy, aten.to, aten.where)
class Pointwise(Rule):
    """Any operator tagged pointwise, with broadcasting."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        edited = [layout_of(arg) for arg in node.all_input_nodes if is_edited(arg)]
        return broadcast(edited, shape_of(node))

    def emit(self, node: Node, place: Place) -> Node:
        layout = layout_of(node)
        return place.clone(node, lambda arg: place.aligned(arg, layout))


@register(aten.softmax, aten.log_softmax, aten.cumsum, aten.cumprod)
class Softmax(Rule):
    """Softmax or running sums over a plain axis."""

    def layout(self, node: Node) -> Layout:
        layout = layout_of(source(node))
        if not layout.is_plain(argument(node, "dim")):
            raise Unmatched("runs along the sites")
        return layout

    def emit(self, node: Node, place: Place) -> Node:
        layout = layout_of(source(node))
        dim = layout.packed_dim(argument(node, "dim"))
        _, _, *rest = node.args
        return place.call(node.target, place.packed(source(node)), dim, *rest, **node.kwargs)


@register(aten.mean, aten.sum, aten.amax, aten.amin, aten.logsumexp)
class Reduce(Rule):
    """Reductions over plain axes; one over the sites gives a value without a grid."""

    def _dims(self, node: Node) -> list[int]:
        rank = len(shape_of(source(node)))
        dims: Any = argument(node, "dim")
        if dims is None or dims == []:
            return list(range(rank))
        return sorted(d % rank for d in ([dims] if isinstance(dims, int) else dims))

    def layout(self, node: Node) -> Layout:
        layout = layout_of(source(node))
        dims = self._dims(node)
        if not all(layout.is_plain(dim) for dim in dims):
            if layout.grid and not {layout.find("y"), layout.find("x")} <= set(dims):
                raise Unmatched("reduces one of the two spatial axes")
            return Layout.of_plain(shape_of(node))
        if argument(node, "keepdim", False):
            return Layout(tuple(() if i in dims else d for i, d in enumerate(layout.dims)))
        return Layout(tuple(d for i, d in enumerate(layout.dims) if i not in dims))

    def is_global(self, node: Node) -> bool:
        return layout_of(node).grid is None

    def emit(self, node: Node, place: Place) -> Node:
        layout = layout_of(source(node))
        dims = [layout.packed_dim(dim) for dim in self._dims(node)]
        keepdim = argument(node, "keepdim", False)
        return place.call(node.target, place.packed(source(node)), dims, keepdim, **node.kwargs)
