"""Matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node
from torch.fx.experimental.proxy_tensor import make_fx

from ..facts import facts
from ..layout import Layout
from ..rules.base import argument, pair, shape_of, source
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


def whole_kernel(node: Node) -> Node | None:
    """A convolution whose kernel covers the whole picture -> linear."""
    if node.target not in (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default):
        return None
    x, weight = source(node), source(node, 1)
    padding = argument(node, "padding")
    if shape_of(x)[1:] != shape_of(weight)[1:] or any(torch.utils._pytree.tree_leaves(padding)):
        return None
    batch, out = shape_of(node)[:2]
    rows = call(node, aten.reshape.default, x, [batch, -1])
    matrix = call(node, aten.reshape.default, weight, [out, -1])
    result = call(node, aten.linear.default, rows, matrix, argument(node, "bias"))
    return call(node, aten.reshape.default, result, list(shape_of(node)))


def over_frames(node: Node) -> Node | None:
    """conv2d over frames, with the sites as columns [N, C, T, sites] -> conv1d at every site.

    Requires layouts.
    """
    if node.target is not aten.conv2d.default:
        return None
    layout = facts(source(node)).layout
    if not isinstance(layout, Layout) or not layout.is_plain(2) or layout.is_plain(3):
        return None
    kernel = shape_of(source(node, 1))[2:]
    stride, padding, dilation = (
        pair(argument(node, name), default)
        for name, default in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)))
    )
    if (kernel[1], stride[1], padding[1]) != (1, 1, 0):
        return None
    batch, channels, frames, sites = shape_of(source(node))
    x = call(node, aten.permute.default, source(node), [0, 3, 1, 2])
    x = call(node, aten.reshape.default, x, [batch * sites, channels, frames])
    weight = call(node, aten.reshape.default, source(node, 1), list(shape_of(source(node, 1))[:3]))
    geometry = [[stride[0]], [padding[0]], [dilation[0]], argument(node, "groups")]
    x = call(node, aten.conv1d.default, x, weight, argument(node, "bias"), *geometry)
    x = call(node, aten.reshape.default, x, [batch, sites, *shape_of(x)[1:]])
    return call(node, aten.permute.default, x, [0, 2, 3, 1])


def over_tokens(node: Node) -> Node | None:
    """conv1d of width one on [N, C, sites] -> product. Requires layouts."""
    if node.target is not aten.conv1d.default or argument(node, "groups") != 1:
        return None
    layout, weight = facts(source(node)).layout, source(node, 1)
    if not isinstance(layout, Layout) or layout.is_plain(2) or shape_of(weight)[2] != 1:
        return None
    if shape_of(node)[2] != shape_of(source(node))[2]:
        return None
    matrix = call(node, aten.reshape.default, weight, list(shape_of(weight)[:2]))
    result = call(node, aten.matmul.default, matrix, source(node))
    bias = argument(node, "bias")
    if bias is None:
        return result
    return call(node, aten.add.Tensor, result, call(node, aten.unsqueeze.default, bias, 1))
