"""What the rewrites share."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from ..rules.base import shape_of, source

aten = torch.ops.aten


def call(node: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A node before ``node`` that carries its source line and the value it would have."""
    graph = node.graph
    with graph.inserting_before(node):
        new = graph.call_function(target, args, kwargs)
    for key in ("stack_trace", "nn_module_stack"):
        if key in node.meta:
            new.meta[key] = node.meta[key]
    values = torch.fx.map_arg((args, kwargs), lambda arg: arg.meta["val"])
    new.meta["val"] = target(*values[0], **values[1])
    return new


def result_of(node: Node, *targets: Any) -> Node | None:
    """The node, of one of ``targets``, whose first result this is."""
    if node.target is not operator.getitem or node.args[1] != 0:
        return None
    whole = source(node)
    return whole if whole.target in targets else None


def permuted(node: Node, x: Node, order: list[int]) -> Node:
    """permute(x), before ``node``."""
    return x if order == sorted(order) else call(node, aten.permute.default, x, order)


def reshaped(node: Node, x: Node, shape: Sequence[int]) -> Node:
    """reshape(x), before ``node``."""
    same = shape_of(x) == tuple(shape)
    return x if same else call(node, aten.reshape.default, x, list(shape))
