"""Attention: queries at active sites, keys and values overlaid in full."""

from __future__ import annotations

from typing import Any

import torch
from sparsify.codegen import ops, products
from torch.fx import Node

from ..layout import Layout, Unmatched, plain
from ..place import Place
from .base import Rule, argument, is_edited, layout_of, register, shape_of, source, static

aten = torch.ops.aten


@register(aten.scaled_dot_product_attention)
class Attention(Rule):
    """``scaled_dot_product_attention(q, k, v)`` on [..., L, d]."""

    def layout(self, node: Node) -> Layout:
        static(node, "attn_mask")
        if argument(node, "is_causal"):
            raise Unmatched("causal attention")
        mask: Any = argument(node, "attn_mask")
        if isinstance(mask, Node) and len(shape_of(mask)) >= 2 and shape_of(mask)[-2] != 1:
            raise Unmatched("the attention mask has a row for every query")
        if not is_edited(source(node)):
            raise Unmatched("queries are not on a grid")
        query = layout_of(source(node))
        if not query.packable or query.site_dim != len(query.dims) - 2 or not query.merged:
            raise Unmatched("queries are not [..., sites, head]")
        return query.replace(-1, shape_of(node)[-1])

    def is_global(self, node: Node) -> bool:
        return is_edited(node.args[1]) or is_edited(node.args[2])

    def emit(self, node: Node, place: Place) -> Node:
        query, key, value, *rest = node.args
        assert isinstance(query, Node)
        full = (place.dense(key), place.dense(value))
        rest = [place.plain(arg) for arg in rest]
        kwargs = {name: place.plain(arg) for name, arg in node.kwargs.items()}
        return place.call(ops.attention, place.packed(query), *full, *rest, **kwargs)


@register(aten.matmul, aten.bmm, aten.mm)
class MatMul(Rule):
    """Products that keep the sites on the rows of the first or the columns of the second factor."""

    def layout(self, node: Node) -> Layout:
        first, second = source(node), source(node, 1)
        shape = shape_of(node)
        if len(shape) < 2 or min(len(shape_of(first)), len(shape_of(second))) < 2:
            raise Unmatched("a product of vectors")
        if is_edited(first) and layout_of(first).grid:
            return self._rows(layout_of(first), shape)
        if is_edited(second) and layout_of(second).grid and not is_edited(first):
            return self._columns(layout_of(second), shape)
        raise Unmatched("no factor lies on a grid")

    def _rows(self, layout: Layout, shape: tuple[int, ...]) -> Layout:
        if not layout.is_plain(len(layout.dims) - 1):
            raise Unmatched("sums over the sites")
        if len(shape) != len(layout.dims):
            raise Unmatched("broadcasts the factor on the grid")
        if not layout.packable or not layout.merged or layout.site_dim != len(shape) - 2:
            raise Unmatched("the sites are not the rows of the product")
        return Layout((*layout.dims[:-1], plain(shape[-1])))

    def _columns(self, layout: Layout, shape: tuple[int, ...]) -> Layout:
        if not layout.is_plain(len(layout.dims) - 2):
            raise Unmatched("sums over the sites")
        if len(shape) != len(layout.dims) or not layout.merged:
            raise Unmatched("broadcasts the factor on the grid")
        return Layout((*layout.dims[:-2], plain(shape[-2]), layout.dims[-1]))

    def _on_rows(self, node: Node) -> bool:
        return is_edited(source(node)) and layout_of(source(node)).grid is not None

    def is_global(self, node: Node) -> bool:
        return self._on_rows(node) and is_edited(source(node, 1))

    def emit(self, node: Node, place: Place) -> Node:
        first, second = source(node), source(node, 1)
        if self._on_rows(node):
            return place.call(products.matmul, place.packed(first), place.dense(second))
        return place.call(products.matmul, place.plain(first), place.packed(second))
