"""Operators that read memory, as functions of values: copies may be dropped from then on."""

from __future__ import annotations

import torch
from sparsify.codegen import ops
from sparsify.codegen.errors import CaptureError
from torch.fx import Graph, Node

from ..rewrites.base import call
from ..rules.base import argument, source

aten = torch.ops.aten


def without_strides(graph: Graph) -> None:
    """as_strided -> ops.as_strided, which says in which order its operand lies in memory.

    From the last to the first, so that each reads the strides that its operand was captured with.
    Raises :class:`CaptureError` where one reads past its operand, or writes into it.
    """
    for node in reversed(graph.nodes):
        if node.target is aten.as_strided_scatter.default:
            raise CaptureError(f"{node.name} writes through as_strided: index or reshape instead")
        if node.target is aten.as_strided.default:
            node.replace_all_uses_with(_of_values(node))
            graph.erase_node(node)


def _of_values(node: Node) -> Node:
    x, size, stride = source(node), argument(node, "size"), argument(node, "stride")
    value, offset = x.meta["val"], argument(node, "storage_offset")
    start = 0 if offset is None else offset - value.storage_offset()
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    last = start + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not (value.permute(order).is_contiguous() and start >= 0 and last < value.numel()):
        raise CaptureError(
            f"{node.name} (as_strided) reads memory around {x}: index or reshape it instead"
        )
    return call(node, ops.as_strided, x, order, size, stride, start)
