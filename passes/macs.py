"""Multiply-accumulates of a node: convolutions, linear layers, products, attention."""

from __future__ import annotations

from math import prod

import torch
from torch.fx import Graph, Node

from .facts import Facts, facts
from .rules.base import shape_of, source

aten = torch.ops.aten


def macs_of(graph: Graph) -> int:
    """Of all its nodes, of what their weights keep."""
    return sum(map(macs, graph.nodes))


def macs(node: Node) -> int:
    """The same of one node."""
    return round(dense_macs(node) * share_kept(node))


def share_kept(node: Node) -> float:
    """Of the weights of a product, those that are kept: N / M."""
    kept = of_weight(node).kept
    return 1.0 if kept is None else kept.share


def of_weight(node: Node) -> Facts:
    """What is known of the weight of a product."""
    factors = node.all_input_nodes if dense_macs(node) else []
    return facts(factors[1]) if len(factors) > 1 else Facts()


def dense_macs(node: Node) -> int:
    """MACs of the dense operator with all weights; 0 for everything that is not a matrix
    product."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return 0
    packet = node.target.overloadpacket
    if packet in (aten.conv1d, aten.conv2d, aten.conv3d):
        return prod(shape_of(node)) * prod(shape_of(source(node, 1))[1:])
    if packet in (aten.conv_transpose1d, aten.conv_transpose2d, aten.conv_transpose3d):
        return prod(shape_of(source(node))) * prod(shape_of(source(node, 1))[1:])
    if packet in (aten.linear, aten.matmul, aten.bmm, aten.mm):
        return prod(shape_of(node)) * shape_of(source(node))[-1]
    if packet is aten.scaled_dot_product_attention:
        keys = shape_of(source(node, 1))[-2]
        queries = prod(shape_of(source(node))[:-1])
        return queries * keys * (shape_of(source(node))[-1] + shape_of(node)[-1])
    return 0
