"""Tensors made of nothing but a shape, drawn or filled."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..rewrite import ResultOf, rewrite
from ..rules.base import argument, source
from .base import call, first_result

aten = torch.ops.aten


_FILLS: dict[Any, float | None] = {
    aten.new_zeros: 0,
    aten.zeros_like: 0,
    aten.new_ones: 1,
    aten.ones_like: 1,
    aten.new_full: None,
    aten.full_like: None,
    aten.empty_like: 0,
    aten.new_empty: 0,
}


@rewrite(*_FILLS)
def constant_fill(node: Node) -> Node:
    """zeros_like, new_full and their kin read nothing but a shape -> full."""
    assert isinstance(node.target, torch._ops.OpOverload)
    value = _FILLS[node.target.overloadpacket]
    value = argument(node, "fill_value") if value is None else value
    return _made(node, aten.full.default, value)


_DRAWS: dict[Any, Any] = {
    aten.randn_like.default: aten.randn.default,
    aten.rand_like.default: aten.rand.default,
}


@rewrite(*_DRAWS)
def draw(node: Node) -> Node:
    """randn_like and rand_like read nothing but a shape -> randn, rand."""
    return _made(node, _DRAWS[node.target])


@rewrite(ResultOf(aten.native_dropout.default))
def dropout(node: Node) -> Node:
    """The result of native_dropout -> a product with a drawn pattern, or nothing."""
    drop = first_result(node)
    x, rate = source(drop), argument(drop, "p")
    if not argument(drop, "train") or rate == 0:
        return x
    kept = call(node, aten.ge.Scalar, _made(node, aten.rand.default), rate)
    return call(node, aten.mul.Tensor, x, call(node, aten.div.Tensor, kept, max(1 - rate, 1e-12)))


def _made(node: Node, factory: Any, *args: Any) -> Node:
    """A tensor of the shape, type and device of ``node``."""
    like = node.meta["val"]
    return call(node, factory, list(like.shape), *args, dtype=like.dtype, device=like.device)
