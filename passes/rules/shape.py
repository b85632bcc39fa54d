"""Views, permutations, concatenations and slices: packed values follow their layout."""

from __future__ import annotations

import operator
from typing import Any

import torch
from sparsify.codegen import ops
from torch.fx import Node

from ..layout import Layout, Unmatched, plain
from ..place import Place
from .base import Rule, argument, find_rule, is_edited, layout_of, register, shape_of, source

aten = torch.ops.aten


@register(aten.view, aten.reshape, aten._unsafe_view, aten.flatten, aten.unflatten)
class Reshape(Rule):
    """Any regrouping of axes that keeps ``y`` and ``x`` whole."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        return layout_of(source(node)).reshape(shape_of(node))

    def emit(self, node: Node, place: Place) -> Node:
        x = place.packed(source(node))
        return place.call(aten.reshape.default, x, layout_of(node).packed_shape())


@register(aten.unsqueeze, aten.squeeze)
class Squeeze(Reshape):
    """Adds or drops an axis of size one, wherever it stands."""


@register(aten.permute, aten.transpose, aten.t)
class Permute(Rule):
    """Reorders the axes; ``y`` has to stay directly before ``x`` to remain packed."""

    cheap = True

    def _order(self, node: Node) -> list[int]:
        rank = len(shape_of(source(node)))
        if node.target is aten.permute.default:
            return [dim % rank for dim in argument(node, "dims")]
        first, second = argument(node, "dim0", 0) % rank, argument(node, "dim1", 1) % rank
        order = list(range(rank))
        order[first], order[second] = order[second], order[first]
        return order

    def layout(self, node: Node) -> Layout:
        return layout_of(source(node)).permute(self._order(node))

    def emit(self, node: Node, place: Place) -> Node:
        before = layout_of(source(node))
        skip = None if before.merged else before.find("x")
        order = [before.packed_dim(dim) for dim in self._order(node) if dim != skip]
        return place.call(aten.permute.default, place.packed(source(node)), order)


@register(aten.expand)
class Expand(Rule):
    """Broadcasts plain axes of size one."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        before, shape = layout_of(source(node)), shape_of(node)
        lead = len(shape) - len(before.dims)
        dims = [*(() for _ in range(lead)), *before.dims]
        pairs = zip(dims, shape, (*(1,) * lead, *before.shape), strict=True)
        return Layout(tuple(dim if old == size else plain(size) for dim, size, old in pairs))

    def emit(self, node: Node, place: Place) -> Node:
        shape = layout_of(node).packed_shape()
        return place.call(aten.expand.default, place.packed(source(node)), shape)


@register(aten.cat)
class Concatenate(Rule):
    """Joins along a plain axis; every edited part lies on one grid."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        parts: Any = node.args[0]
        dim = argument(node, "dim", 0)
        wanted = {layout_of(part).replace(dim, 1) for part in parts if is_edited(part)}
        if len(wanted) != 1:
            raise Unmatched("joins values of different grids")
        return wanted.pop().replace(dim, shape_of(node)[dim])

    def emit(self, node: Node, place: Place) -> Node:
        parts: Any = node.args[0]
        dim, layout = argument(node, "dim", 0), layout_of(node)
        packed = [place.aligned(part, layout.replace(dim, shape_of(part)[dim])) for part in parts]
        if layout.is_image and dim % len(layout.dims) == 1:
            return place.call(ops.concat_channels, packed)
        return place.call(aten.cat.default, packed, layout.packed_dim(dim))


@register(aten.slice, aten.select, aten.narrow)
class Slice(Rule):
    """Takes a part of a plain axis."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        layout, dim = layout_of(source(node)), argument(node, "dim", 0)
        if not layout.is_plain(dim):
            if shape_of(node) == shape_of(source(node)):
                return layout
            raise Unmatched("takes a part of the grid")
        if node.target is aten.select.int:
            dim %= len(layout.dims)
            return Layout((*layout.dims[:dim], *layout.dims[dim + 1 :]))
        return layout.replace(dim, shape_of(node)[dim])

    def emit(self, node: Node, place: Place) -> Node:
        layout, dim = layout_of(source(node)), argument(node, "dim", 0)
        x = place.packed(source(node))
        if not layout.is_plain(dim):
            return x
        return place.call(node.target, x, layout.packed_dim(dim), *node.args[2:], **node.kwargs)


@register(aten.chunk, aten.split, aten.split_with_sizes, aten.unbind)
class Split(Rule):
    """Cuts a plain axis; the parts are taken by ``getitem``."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        layout, dim = layout_of(source(node)), argument(node, "dim", 0)
        if not layout.is_plain(dim):
            raise Unmatched("cuts the grid")
        return layout

    def part(self, node: Node, index: int) -> Layout:
        layout, dim = self.layout(node), argument(node, "dim", 0) % len(shape_of(source(node)))
        if node.target is aten.unbind.int:
            return Layout((*layout.dims[:dim], *layout.dims[dim + 1 :]))
        return layout.replace(dim, node.meta["val"][index].shape[dim])

    def emit(self, node: Node, place: Place) -> Node:
        layout, (_, *middle) = layout_of(source(node)), node.args
        dim = layout.packed_dim(argument(node, "dim", 0))
        middle = middle[: 0 if node.target is aten.unbind.int else 1]
        return place.call(node.target, place.packed(source(node)), *middle, dim)


@register(operator.getitem)
class GetItem(Rule):
    """A part of a split, or the first result of a norm."""

    cheap = True

    def layout(self, node: Node) -> Layout:
        whole, index = source(node), node.args[1]
        assert isinstance(index, int)
        layout = layout_of(whole)
        if whole.target is ops.group_norm:
            if index:
                raise Unmatched("uses the statistics of a norm")
            return layout
        rule = find_rule(whole)
        if not isinstance(rule, Split):
            raise Unmatched("an operator with several results")
        return rule.part(whole, index)

    def emit(self, node: Node, place: Place) -> Node:
        whole = place.packed(source(node))
        if source(node).target is ops.group_norm:
            return whole
        return place.call(operator.getitem, whole, node.args[1])
