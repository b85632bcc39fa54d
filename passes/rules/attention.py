"""Attention: queries at active sites, keys and values overlaid in full."""

from __future__ import annotations

from typing import Any

import torch
from sparsify.codegen import by_item, opaque
from torch.fx import Node

from ..layout import Layout, Unmatched, plain
from ..packing.items import differs
from ..packing.place import Place
from .base import Rule, argument, is_edited, layout_of, register, require_unedited, shape_of, source

aten = torch.ops.aten


def _batched(layout: Layout) -> bool:
    """The sites stand before the rows and columns: each has a product of its own, over frames
    say."""
    return layout.grid is not None and layout.site_dim < len(layout.dims) - 2


def differs_by_item(layout: Layout, other: Node) -> bool:
    """Is a factor whose axes, but the last two, broadcast against a value of ``layout`` another
    one for each item?"""
    dim, shape = layout.find("n"), shape_of(other)
    return dim is not None and dim < len(layout.dims) - 2 and differs(layout, shape)


@register(aten.scaled_dot_product_attention)
class Attention(Rule):
    """``scaled_dot_product_attention(q, k, v)`` on [..., L, d]: sites are queries, or a batch."""

    def layout(self, node: Node) -> Layout:
        require_unedited(node, "attn_mask")
        if not is_edited(source(node)):
            raise Unmatched("queries are not on a grid")
        query = layout_of(source(node))
        if not query.packable or not query.merged or query.site_dim == len(query.dims) - 1:
            raise Unmatched("queries are not [..., sites, head]")
        if _batched(query):
            self._check_batch(node, query)
            return query.replace(-1, shape_of(node)[-1])
        if argument(node, "is_causal"):
            raise Unmatched("causal attention")
        return query.replace(-1, shape_of(node)[-1])

    def _check_batch(self, node: Node, query: Layout) -> None:
        for name in ("key", "value"):
            other = argument(node, name)
            if (
                is_edited(other)
                and layout_of(other).dims[query.site_dim] != (query.dims[query.site_dim])
            ):
                raise Unmatched("keys lie on other sites than queries")
        mask: Any = argument(node, "attn_mask")
        if isinstance(mask, Node):
            sizes = shape_of(mask)[: -(len(query.dims) - query.site_dim - 1)]
            if any(size != 1 for size in sizes):
                raise Unmatched("the attention mask differs by site")

    def is_global(self, node: Node) -> bool:
        if _batched(layout_of(node)):
            return False
        return is_edited(node.args[1]) or is_edited(node.args[2])

    def emit(self, node: Node, place: Place) -> Node:
        query, pair, rest = source(node), (source(node, 1), source(node, 2)), list(node.args[3:])
        if _batched(layout_of(node)):
            full = [self._at_sites(place, other, layout_of(query)) for other in pair]
        elif any(differs_by_item(layout_of(query), other) for other in pair):
            return self._by_item(node, place)
        else:
            full = [place.materialise(other) for other in pair]
        if rest:
            rest[0] = self._mask(node, place)
        kwargs = dict(node.kwargs)
        if "attn_mask" in kwargs:
            kwargs["attn_mask"] = self._mask(node, place)
        return place.call(opaque.attention, place.packed(query), *full, *rest, **kwargs)

    def _by_item(self, node: Node, place: Place) -> Node:
        """Queries of each item over its own keys."""
        query = layout_of(source(node))
        pair = [place.by_item(source(node, index), query) for index in (1, 2)]
        how = argument(node, "scale"), bool(argument(node, "enable_gqa"))
        operands = (place.packed(source(node)), *pair, self._mask(node, place))
        return place.call(by_item.attention, *operands, *place.lanes(node), *how)

    def _mask(self, node: Node, place: Place) -> Node | None:
        """The rows of the mask that belong to the queries, if it has one for each."""
        mask: Node | None = argument(node, "attn_mask")
        if mask is None or _batched(layout_of(node)):
            return mask and place.materialise(mask)
        return place.aligned(mask, layout_of(node).replace(-1, shape_of(mask)[-1]))

    def _at_sites(self, place: Place, other: Any, query: Layout) -> Node:
        return place.aligned(other, query.replace(-2, shape_of(other)[-2]))


@register(aten.matmul, aten.bmm, aten.mm)
class MatMul(Rule):
    """Products with the sites on the rows of the first factor, the columns of the second, or in
    the batch of both; a product that sums over the sites has no grid."""

    def layout(self, node: Node) -> Layout:
        first, second = source(node), source(node, 1)
        shape = shape_of(node)
        if len(shape) < 2 or min(len(shape_of(first)), len(shape_of(second))) < 2:
            raise Unmatched("a product of vectors")
        if argument(node, "out_dtype") is not None:
            raise Unmatched("a product in another dtype than its factors")
        if self._sums_over_sites(node):
            return Layout.of_plain(shape)
        if self._on_columns(node):
            return self._columns(layout_of(second), shape)
        if is_edited(first) and layout_of(first).grid:
            return self._rows(layout_of(first), second, shape)
        raise Unmatched("no factor lies on a grid")

    def _sums_over_sites(self, node: Node) -> bool:
        first, second = source(node), source(node, 1)
        over = [(first, -1), (second, -2)]
        edited = [(x, dim) for x, dim in over if is_edited(x) and layout_of(x).grid]
        if not edited:
            return False
        return all(
            not layout_of(x).is_plain(dim) and layout_of(x).packable and layout_of(x).merged
            for x, dim in edited
        )

    def _rows(self, layout: Layout, second: Node, shape: tuple[int, ...]) -> Layout:
        if not layout.is_plain(len(layout.dims) - 1):
            raise Unmatched("sums over the sites")
        if len(shape) != len(layout.dims):
            raise Unmatched("broadcasts the factor on the grid")
        if not layout.packable or not layout.merged:
            raise Unmatched("the sites are not the rows of the product")
        if _batched(layout) and is_edited(second):
            other = layout_of(second)
            if len(other.dims) != len(shape) or (
                other.dims[layout.site_dim] != layout.dims[layout.site_dim]
            ):
                raise Unmatched("the factors lie on different sites")
        return Layout((*layout.dims[:-1], plain(shape[-1])))

    def _columns(self, layout: Layout, shape: tuple[int, ...]) -> Layout:
        if not layout.is_plain(len(layout.dims) - 2):
            raise Unmatched("sums over the sites")
        if len(shape) != len(layout.dims) or not layout.merged or not layout.packable:
            raise Unmatched("broadcasts the factor on the grid")
        return Layout((*layout.dims[:-2], plain(shape[-2]), layout.dims[-1]))

    def _on_columns(self, node: Node) -> bool:
        """The second factor has its columns on a grid, and the first not its rows."""
        first, second = source(node), source(node, 1)
        if not is_edited(second) or layout_of(second).is_plain(-1):
            return False
        on_rows = is_edited(first) and layout_of(first).grid and not layout_of(first).is_plain(-2)
        return not on_rows

    def is_global(self, node: Node) -> bool:
        if _batched(layout_of(node)):
            return False
        other = source(node, 0 if self._on_columns(node) else 1)
        return self._sums_over_sites(node) or is_edited(other)

    def emit(self, node: Node, place: Place) -> Node:
        first, second = source(node), source(node, 1)
        if _batched(layout_of(node)):
            factors = [self._at_sites(place, x, layout_of(node)) for x in (first, second)]
            return place.call(opaque.matmul, *factors)
        if self._on_columns(node):
            if differs_by_item(layout_of(second), first):
                operands = (place.by_item(first, layout_of(second)), place.packed(second))
                return place.call(by_item.matmul, *operands, *place.lanes(node), True)
            return place.call(opaque.matmul, place.materialise(first), place.packed(second))
        if differs_by_item(layout_of(first), second):
            operands = (place.packed(first), place.by_item(second, layout_of(first)))
            return place.call(by_item.matmul, *operands, *place.lanes(node), False)
        return place.call(opaque.matmul, place.packed(first), place.materialise(second))

    def _at_sites(self, place: Place, factor: Node, layout: Layout) -> Node:
        rows, columns = shape_of(factor)[-2:]
        return place.aligned(factor, layout.replace(-2, rows).replace(-1, columns))
