"""Matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from ..layout import Unmatched
from ..rewrite import rewrite
from ..rules.base import argument, shape_of, source
from .base import call

aten = torch.ops.aten


@rewrite(aten.baddbmm.default, aten.addmm.default)
def matrix_product(node: Node) -> Node:
    """baddbmm / addmm -> a product and a sum; with beta = 0 the sum is left out."""
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


@rewrite(aten.einsum.default)
def einsum(node: Node) -> Node:
    """einsum -> permutes, views and a batched product, as torch itself computes it."""
    equation: Any
    operands: Any
    equation, operands = node.args[:2]
    values = [operand.meta["val"] for operand in operands]
    traced = make_fx(lambda *xs: torch.einsum(equation, *xs))(*values)
    return inline(node, traced.graph, operands)


def inline(node: Node, graph: torch.fx.Graph, operands: list[Node]) -> Node:
    """Copies a traced graph in before ``node``."""
    values: dict[Node, Node] = dict(zip(graph.find_nodes(op="placeholder"), operands, strict=True))
    for inner in graph.nodes:
        if inner.op == "call_function":
            args, kwargs = torch.fx.map_arg((inner.args, inner.kwargs), values.__getitem__)
            values[inner] = call(node, inner.target, *args, **kwargs)
    result = graph.output_node().args[0]
    assert isinstance(result, Node)
    return values[result]


@rewrite(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
def whole_kernel(node: Node) -> Node:
    """A convolution whose kernel covers the whole picture -> linear."""
    x, weight = source(node), source(node, 1)
    padding = argument(node, "padding")
    if shape_of(x)[1:] != shape_of(weight)[1:] or any(torch.utils._pytree.tree_leaves(padding)):
        raise Unmatched("its kernel does not cover the whole picture")
    batch, out = shape_of(node)[:2]
    rows = call(node, aten.reshape.default, x, [batch, -1])
    matrix = call(node, aten.reshape.default, weight, [out, -1])
    result = call(node, aten.linear.default, rows, matrix, argument(node, "bias"))
    return call(node, aten.reshape.default, result, list(shape_of(node)))
