"""Reads and writes at positions that the graph itself computes -> slices and joins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..rules.base import argument, shape_of, source
from .base import call
from .views import replaced

aten = torch.ops.aten

_MADE_FROM = (
    *(aten.arange, aten.full, aten.zeros, aten.ones, aten.reshape, aten.expand, aten.cat),
    *(aten.slice, aten.select, aten.add, aten.mul, aten._to_copy, aten.unsqueeze, aten.view),
)


def constant(arg: Any) -> Tensor | None:
    """The value of a node made from numbers alone."""
    if not isinstance(arg, Node) or getattr(arg.target, "overloadpacket", None) not in _MADE_FROM:
        return None
    if not isinstance(arg.target, torch._ops.OpOverload) or arg.meta["val"].is_floating_point():
        return None
    known = {node: constant(node) for node in arg.all_input_nodes}
    if any(value is None for value in known.values()):
        return None
    args, kwargs = torch.fx.map_arg((arg.args, arg.kwargs), known.__getitem__)
    on_cpu = {"device": "cpu"} if "device" in kwargs else {}  # the graph's may be meta
    value: Tensor = arg.target(*args, **{**kwargs, **on_cpu})
    return value


def _position(node: Node) -> tuple[int, Tensor] | None:
    """The only indexed axis of ``node``, and its constant index."""
    indices: Any = node.args[1]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    index = constant(indices[dims[0]]) if len(dims) == 1 else None
    return None if index is None or index.dim() != 1 else (dims[0], index)


def _range(index: Tensor, size: int) -> tuple[int, int] | None:
    """Start and stop of an index that counts up by one."""
    if index.dtype == torch.bool:
        index = index.nonzero()[:, 0]
    if index.numel() == 0:
        return 0, 0
    start = int(index[0]) % size
    wanted = torch.arange(start, start + index.numel(), device="cpu")
    return (start, start + index.numel()) if torch.equal(index % size, wanted) else None


def read(node: Node) -> Node | None:
    """index by a constant range -> slice."""
    if node.target is not aten.index.Tensor or (at := _position(node)) is None:
        return None
    limits = _range(at[1], shape_of(source(node))[at[0]])
    return limits and call(node, aten.slice.Tensor, source(node), at[0], *limits)


def write(node: Node) -> Node | None:
    """index_put or index_copy at a constant range -> cat of what stays and what is new."""
    if node.target is aten.index_copy.default:
        index = constant(node.args[2])
        at = None if index is None else (argument(node, "dim"), index)
        new = argument(node, "source")
    elif node.target is aten.index_put.default and not argument(node, "accumulate"):
        at, new = _position(node), argument(node, "values")
    else:
        return None
    limits = _range(at[1], shape_of(node)[at[0]]) if at else None
    if at is None or limits is None:
        return None
    if limits[0] == limits[1]:
        return source(node)
    shape = [*shape_of(node)]
    shape[at[0]] = limits[1] - limits[0]
    if list(shape_of(new)) != shape:
        new = call(node, aten.expand.default, new, shape)
    return replaced(node, source(node), new, at[0], *limits)


def add_rows(node: Node) -> Node | None:
    """scatter_add of every row to itself -> add."""
    if node.target is not aten.scatter_add.default or (index := constant(node.args[2])) is None:
        return None
    dim = argument(node, "dim") % len(shape_of(node))
    shape = [-1 if axis == dim else 1 for axis in range(index.dim())]
    own = torch.arange(shape_of(node)[dim], device="cpu").reshape(shape)
    if tuple(index.shape) != shape_of(node) or not torch.equal(index, own.expand_as(index)):
        return None
    return call(node, aten.add.Tensor, source(node), argument(node, "src"))
