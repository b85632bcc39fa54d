"""Multiply-accumulates of a node: convolutions, linear layers, products, attention."""

from __future__ import annotations

from math import prod

import torch
from torch.fx import Graph, Node

from .facts import facts
from .rules.base import shape_of, source

aten = torch.ops.aten


def macs_of(graph: Graph) -> int:
    """Of all its nodes."""
    return sum(map(macs, graph.nodes))


def macs(node: Node) -> int:
    """MACs of the dense operator, of what its weight keeps; 0 for everything that is not a matrix
    product."""
    work = _of_all(node)
    kept = facts(node.all_input_nodes[1]).kept if work and len(node.all_input_nodes) > 1 else None
    return work if kept is None else work * kept.n // kept.m


def _of_all(node: Node) -> int:
    """Of weights that keep all."""
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
