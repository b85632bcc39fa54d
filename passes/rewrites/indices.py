"""Reads and writes at positions that the graph itself computes -> slices and joins."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import rewrite
from ..rules.base import argument, shape_of, source
from .base import call
from .joins import replaced

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


def _position(node: Node) -> tuple[int, Tensor]:
    """The only indexed axis of ``node``, and its constant index."""
    indices: Any = node.args[1]
    dims = [dim for dim, index in enumerate(indices) if index is not None]
    if len(dims) != 1:
        raise Unmatched("several axes are indexed")
    return dims[0], _known(indices[dims[0]])


def _known(arg: Any) -> Tensor:
    """The constant index along one axis."""
    index = constant(arg)
    if index is None:
        raise Unmatched("its index depends on inputs or weights")
    return index


def _range(index: Tensor, size: int) -> tuple[int, int]:
    """Start and stop of an index that counts up by one."""
    if index.dim() != 1:
        raise Unmatched("its index has several axes")
    if index.dtype == torch.bool:
        index = index.nonzero()[:, 0]
    if index.numel() == 0:
        return 0, 0
    start = int(index[0]) % size
    wanted = torch.arange(start, start + index.numel(), device="cpu")
    if not torch.equal(index % size, wanted):
        raise Unmatched("its index does not count up by one")
    return start, start + index.numel()


@rewrite(aten.index.Tensor)
def read(node: Node) -> Node:
    """index by a constant range -> slice."""
    dim, index = _position(node)
    limits = _range(index, shape_of(source(node))[dim])
    return call(node, aten.slice.Tensor, source(node), dim, *limits)


@rewrite(aten.index_put.default, aten.index_copy.default)
def write(node: Node) -> Node:
    """index_put or index_copy at a constant range -> cat of what stays and what is new."""
    if node.target is aten.index_copy.default:
        dim, index = argument(node, "dim"), _known(node.args[2])
        new = argument(node, "source")
    elif argument(node, "accumulate"):
        raise Unmatched("it adds to what is there")
    else:
        (dim, index), new = _position(node), argument(node, "values")
    start, stop = _range(index, shape_of(node)[dim])
    if start == stop:
        return source(node)
    shape = [*shape_of(node)]
    shape[dim] = stop - start
    if list(shape_of(new)) != shape:
        new = call(node, aten.expand.default, new, shape)
    return replaced(node, source(node), new, dim, start, stop)


@rewrite(aten.scatter_add.default)
def add_rows(node: Node) -> Node:
    """scatter_add of every row to itself -> add."""
    index = _known(node.args[2])
    dim = argument(node, "dim") % len(shape_of(node))
    shape = [-1 if axis == dim else 1 for axis in range(index.dim())]
    own = torch.arange(shape_of(node)[dim], device="cpu").reshape(shape)
    if tuple(index.shape) != shape_of(node) or not torch.equal(index, own.expand_as(index)):
        raise Unmatched("rows are added to other rows")
    return call(node, aten.add.Tensor, source(node), argument(node, "src"))
