"""Attention in other words."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from ..rules.base import shape_of, source
from .base import call
from .products import inline

aten = torch.ops.aten


def flex_attention(node: Node) -> Node | None:
    """The result of flex_attention that changes no score -> attention under its mask."""
    if node.target is not operator.getitem or node.args[1] != 0:
        return None
    flex, module = source(node), node.graph.owning_module
    if flex.target is not torch.ops.higher_order.flex_attention or module is None:
        return None
    query, key, value, score, block, scale, _, _, buffers = flex.args
    blocks: Any = block
    own: Any = buffers
    if (
        not _returns_its_score(_graph(module, score))
        or shape_of(source(flex, 1))[1] != (shape_of(source(flex))[1])
    ):
        return None
    sizes = (*shape_of(source(flex))[:3], shape_of(source(flex, 1))[2])
    places = [_positions(node, size, axis) for axis, size in enumerate(sizes)]
    allowed = inline(node, _graph(module, blocks[-1]), [*places, *own])
    shape = [*shape_of(allowed)[:2], *sizes[2:]]
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
