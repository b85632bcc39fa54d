"""Copies, casts and views."""

from __future__ import annotations

import torch
from sparsify.codegen import ops
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import rewrite
from ..rules.base import argument, shape_of, source
from .base import call, same_kind

aten = torch.ops.aten


# Nothing is written in place after capture, so copies have no effect.
@rewrite(aten.clone, aten.alias, aten.detach, aten.contiguous, aten.lift_fresh_copy)
def drop_copies(node: Node) -> Node:
    """clone(x) -> x."""
    return source(node)


@rewrite(aten.pad.default)
def pad_nothing(node: Node) -> Node:
    """A pad by zero entries -> nothing."""
    if any(argument(node, "pad")):
        raise Unmatched("it pads")
    return source(node)


@rewrite(aten._to_copy.default)
def cast_nothing(node: Node) -> Node:
    """A cast to the type that is there -> nothing."""
    if not same_kind(source(node), node):
        raise Unmatched("it casts")
    return source(node)


@rewrite(aten.mul.Tensor, aten.div.Tensor)
def by_one(node: Node) -> Node:
    """x * 1 and x / 1 -> x."""
    if isinstance(node.args[1], Node) or node.args[1] != 1 or not same_kind(source(node), node):
        raise Unmatched("it changes its operand")
    return source(node)


@rewrite(aten.type_as.default)
def type_as(node: Node) -> Node:
    """type_as -> a cast."""
    wanted = node.meta["val"]
    return call(node, aten._to_copy.default, source(node), dtype=wanted.dtype, device=wanted.device)


@rewrite(
    *(aten.view.default, aten._unsafe_view, aten.unsqueeze, aten.squeeze),
    *(aten.flatten, aten.unflatten, aten.view_as, aten.reshape_as),
)
def free_view(node: Node) -> Node:
    """view and its kin -> reshape: strides are not the captured ones once copies are gone."""
    return call(node, aten.reshape.default, source(node), list(shape_of(node)))


@rewrite(aten.view.dtype)
def free_bits(node: Node) -> Node:
    """A view as another type -> ops.view_dtype, whatever the strides."""
    return call(node, ops.view_dtype, source(node), node.args[1])


@rewrite(aten.view_as_complex.default)
def complex_view(node: Node) -> Node:
    """view_as_complex -> ops.as_complex, whatever the strides."""
    return call(node, ops.as_complex, source(node))
