"""What the rewrites share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from ..layout import Unmatched
from ..rules.base import shape_of, source

aten = torch.ops.aten


def call(node: Node, target: Any, *args: Any, **kwargs: Any) -> Node:
    """A node before ``node`` that carries its source line and the value it would have."""
    values = torch.fx.map_arg((args, kwargs), lambda arg: arg.meta["val"])
    return call_giving(node, target(*values[0], **values[1]), target, *args, **kwargs)


def call_giving(node: Node, result: Any, target: Any, *args: Any, **kwargs: Any) -> Node:
    """The same, where the value is known without running many small operators."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args, kwargs)
    for key in ("stack_trace", "nn_module_stack"):
        if key in node.meta:
            new.meta[key] = node.meta[key]
    new.meta["val"] = result
    return new


def first_result(node: Node) -> Node:
    """The node whose first result this is."""
    if node.args[1] != 0:
        raise Unmatched("another result than the first is read")
    return source(node)


def same_kind(x: Node, other: Node) -> bool:
    """Have both values one shape, type and device?"""
    first, second = x.meta["val"], other.meta["val"]
    of = (first.shape, first.dtype, first.device)
    return bool(of == (second.shape, second.dtype, second.device))


def permuted(node: Node, x: Node, order: list[int]) -> Node:
    """permute(x), before ``node``."""
    return x if order == sorted(order) else call(node, aten.permute.default, x, order)


def reshaped(node: Node, x: Node, shape: Sequence[int]) -> Node:
    """reshape(x), before ``node``."""
    same = shape_of(x) == tuple(shape)
    return x if same else call(node, aten.reshape.default, x, list(shape))
