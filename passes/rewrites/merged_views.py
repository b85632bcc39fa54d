"""Fewer views, where some were added or their operators dropped."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import rewrite
from ..rules.base import permutation, shape_of, source
from .base import call, permuted, reshaped

aten = torch.ops.aten


@rewrite(aten.reshape.default)
def merged_reshape(node: Node) -> Node:
    """reshape of reshape -> reshape; to the same shape -> nothing."""
    x, shape = source(node), shape_of(node)
    while x.target is aten.reshape.default:
        x = source(x)
    if shape_of(x) == shape:
        return x
    if x is source(node):
        raise Unmatched("its operand is no reshape")
    return call(node, aten.reshape.default, x, list(shape))


@rewrite(aten.permute.default, aten.transpose.int, aten.t.default)
def unit_axes(node: Node) -> Node:
    """permute of a reshape that only adds or drops axes of size one -> reshape of a permute."""
    order = permutation(node)
    assert order is not None
    if source(node).target is not aten.reshape.default:
        raise Unmatched("its operand is no reshape")
    inner = source(node)
    before, middle = shape_of(source(inner)), shape_of(inner)
    kept = [dim for dim, size in enumerate(before) if size > 1]
    if [before[dim] for dim in kept] != [size for size in middle if size > 1]:
        raise Unmatched("its operand regroups axes")
    place = dict(zip([dim for dim, size in enumerate(middle) if size > 1], kept, strict=True))
    moved = [place[dim] for dim in order if dim in place]
    units = [dim for dim in range(len(before)) if dim not in kept]
    x = permuted(node, source(inner), [*units, *moved])
    return reshaped(node, x, shape_of(node))


@rewrite(aten.permute.default, aten.transpose.int, aten.t.default)
def merged_permute(node: Node) -> Node:
    """permute of permute -> permute; one that moves nothing -> nothing."""
    order = permutation(node)
    assert order is not None
    x, merged = source(node), False
    while (inner := permutation(x)) is not None:
        x, order, merged = source(x), [inner[dim] for dim in order], True
    if order == sorted(order):
        return x
    if not merged:
        raise Unmatched("its operand is no permute")
    return call(node, aten.permute.default, x, order)
