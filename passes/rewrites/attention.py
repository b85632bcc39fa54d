"""Attention in other words."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..layout import Unmatched
from ..rewrite import ResultOf, rewrite
from ..rules.base import shape_of
from .base import call, first_result
from .products import inline

aten = torch.ops.aten


@rewrite(ResultOf(torch.ops.higher_order.flex_attention))
def flex_attention(node: Node) -> Node:
    """The result of flex_attention that changes no score -> attention under its mask."""
    arguments: Any = first_result(node).args
    module = node.graph.owning_module
    assert module is not None
    query, key, value, score, blocks, scale, _, _, buffers = arguments
    (batch, heads, queries, _), (_, key_heads, keys, _) = shape_of(query), shape_of(key)
    if not _returns_its_score(_graph(module, score)):
        raise Unmatched("it changes its scores")
    if heads != key_heads:
        raise Unmatched("several heads share a key")
    sizes = (batch, heads, queries, keys)
    places = [_positions(node, size, axis) for axis, size in enumerate(sizes)]
    allowed = inline(node, _graph(module, blocks[-1]), [*places, *buffers])
    shape = [*shape_of(allowed)[:2], queries, keys]
    allowed = call(node, aten.expand.default, allowed, shape)
    attend = aten.scaled_dot_product_attention.default
    return call(node, attend, query, key, value, allowed, 0.0, False, scale=scale)


def _graph(module: GraphModule, function: Any) -> torch.fx.Graph:
    inner = getattr(module, function.target)
    assert isinstance(inner, GraphModule)
    return inner.graph


def _returns_its_score(graph: torch.fx.Graph) -> bool:
    result: Any = graph.output_node().args[0]
    return bool(result is graph.find_nodes(op="placeholder")[0])


def _positions(node: Node, size: int, axis: int) -> Node:
    """0, 1, ... along one of the axes (item, head, query, key)."""
    device = node.meta["val"].device
    count = call(node, aten.arange.default, size, dtype=torch.int64, device=device)
    shape = [size if dim == axis else 1 for dim in range(4)]
    return call(node, aten.reshape.default, count, shape)
