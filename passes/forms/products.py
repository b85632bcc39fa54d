"""Matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from ..rules.base import argument
from .base import call

aten = torch.ops.aten


def matrix_product(node: Node) -> Node | None:
    """baddbmm / addmm -> a product and a sum; with beta = 0 the sum is left out."""
    if node.target not in (aten.baddbmm.default, aten.addmm.default):
        return None
    base, first, second = node.args
    alpha, beta = argument(node, "alpha"), argument(node, "beta")
    product = call(node, aten.matmul.default, first, second)
    if alpha != 1:
        product = call(node, aten.mul.Tensor, product, alpha)
    if beta == 0:
        return product
    if beta != 1:
        base = call(node, aten.mul.Tensor, base, beta)
    return call(node, aten.add.Tensor, product, base)


def einsum(node: Node) -> Node | None:
    """einsum -> permutes, views and a batched product, as torch itself computes it."""
    if node.target is not aten.einsum.default:
        return None
    equation: Any
    operands: Any
    equation, operands = node.args[:2]
    values = [operand.meta["val"] for operand in operands]
    traced = make_fx(lambda *xs: torch.einsum(equation, *xs))(*values)
    return _inline(node, traced.graph, operands)


def _inline(node: Node, graph: torch.fx.Graph, operands: list[Node]) -> Node:
    """Copies a traced graph in before ``node``."""
    values: dict[Node, Node] = dict(zip(graph.find_nodes(op="placeholder"), operands, strict=True))
    for inner in graph.nodes:
        if inner.op == "call_function":
            args, kwargs = torch.fx.map_arg((inner.args, inner.kwargs), values.__getitem__)
            values[inner] = call(node, inner.target, *args, **kwargs)
    result = graph.output_node().args[0]
    assert isinstance(result, Node)
    return values[result]
