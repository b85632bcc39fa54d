"""Reductions and small functions, as those that the rules know."""

from __future__ import annotations

import operator
from math import prod
from typing import Any

import torch
from sparsify.codegen import ops
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import ResultOf, rewrite
from ..rules.base import argument, shape_of, source
from .base import call, first_result

aten = torch.ops.aten


@rewrite(aten.adaptive_avg_pool2d.default, ResultOf(aten.adaptive_max_pool2d))
def adaptive_pool(node: Node) -> Node:
    """adaptive_avg_pool2d, and the result of adaptive_max_pool2d -> mean, amax, or a pool."""
    mean = node.target is aten.adaptive_avg_pool2d.default
    pool = node if mean else first_result(node)
    x, out, grid = source(pool), shape_of(node)[-2:], shape_of(source(pool))[-2:]
    if out == (1, 1):
        return call(node, aten.mean.dim if mean else aten.amax.default, x, [-2, -1], True)
    if len(shape_of(x)) != 4:
        raise Unmatched("it pools no pictures [N, C, H, W]")
    if grid[0] % out[0] or grid[1] % out[1]:
        if mean:
            raise Unmatched("windows have different sizes")
        return call(node, ops.adaptive_max_pool, x, list(out))
    kernel = [grid[0] // out[0], grid[1] // out[1]]
    return call(node, (aten.avg_pool2d if mean else aten.max_pool2d).default, x, kernel, kernel)


@rewrite(ResultOf(aten.max_pool2d_with_indices))
def max_pool(node: Node) -> Node:
    """The results of max_pool2d_with_indices, each alone."""
    pool = source(node)
    if len(shape_of(node)) != 4:
        raise Unmatched("it pools no pictures [N, C, H, W]")
    kernel = argument(pool, "kernel_size")
    names, ceil = ("stride", "padding", "dilation"), argument(pool, "ceil_mode")
    stride, padding, dilation = (argument(pool, name) for name in names)
    how = [kernel, stride or kernel, padding or [0, 0], dilation or [1, 1]]
    if node.args[1] == 0:
        return call(node, aten.max_pool2d.default, source(pool), *how, ceil)
    if ceil:
        raise Unmatched("its last windows are not whole")
    return call(node, ops.max_pool_indices, source(pool), *how)


@rewrite(aten.var, aten.std, ResultOf(aten.var_mean), ResultOf(aten.std_mean))
def variance(node: Node) -> Node:
    """var and std, alone or with the mean -> mean of squared deviations."""
    is_part = node.target is operator.getitem
    moments, index = (source(node), node.args[1]) if is_part else (node, 0)
    packet: Any = getattr(moments.target, "overloadpacket", None)
    x, keepdim = source(moments), argument(moments, "keepdim", False)
    rank = len(shape_of(x))
    dims = [dim % rank for dim in argument(moments, "dim") or range(rank)]
    mean = call(node, aten.mean.dim, x, dims, True)
    if index == 1:
        return mean if keepdim else call(node, aten.mean.dim, x, dims)
    correction = argument(moments, "correction")
    if correction is None:
        correction = int(argument(moments, "unbiased", True))
    deviation = call(node, aten.sub.Tensor, x, mean)
    squares = call(node, aten.mul.Tensor, deviation, deviation)
    total = call(node, aten.sum.dim_IntList, squares, dims, keepdim)
    count = prod(shape_of(x)[dim] for dim in dims)
    result = call(node, aten.div.Tensor, total, max(count - correction, 0))
    return result if packet in (aten.var, aten.var_mean) else call(node, aten.sqrt.default, result)


@rewrite(aten.max.default, aten.min.default)
def extreme(node: Node) -> Node:
    """The largest or smallest of all values -> amax, amin."""
    kind = aten.amax if node.target is aten.max.default else aten.amin
    return call(node, kind.default, source(node))


@rewrite(ResultOf(aten.max.dim), ResultOf(aten.min.dim))
def extremes(node: Node) -> Node:
    """The values of max or min along an axis -> amax, amin."""
    whole = first_result(node)
    kind = aten.amax if whole.target is aten.max.dim else aten.amin
    dim, keepdim = argument(whole, "dim"), argument(whole, "keepdim")
    return call(node, kind.default, source(whole), [dim], keepdim)


@rewrite(aten.prelu.default)
def prelu(node: Node) -> Node:
    """prelu -> where."""
    x, weight = source(node), source(node, 1)
    rank = len(shape_of(x))
    shape = [-1 if dim == 1 else 1 for dim in range(rank)] if rank > 1 else [1]
    scaled = call(node, aten.mul.Tensor, x, call(node, aten.reshape.default, weight, shape))
    positive = call(node, aten.gt.Scalar, x, 0)
    return call(node, aten.where.self, positive, x, scaled)


@rewrite(aten.glu.default)
def gated(node: Node) -> Node:
    """glu -> one half times the sigmoid of the other."""
    dim = argument(node, "dim") % len(shape_of(node))
    half = shape_of(node)[dim]
    first = call(node, aten.slice.Tensor, source(node), dim, 0, half)
    gate = call(node, aten.slice.Tensor, source(node), dim, half, 2 * half)
    return call(node, aten.mul.Tensor, first, call(node, aten.sigmoid.default, gate))


@rewrite(aten.col2im.default)
def fold(node: Node) -> Node:
    """col2im of blocks side by side -> reshape."""
    kernel, stride = argument(node, "kernel_size"), argument(node, "stride")
    padding, dilation = argument(node, "padding"), argument(node, "dilation")
    batch, channels, *grid = shape_of(node) if len(shape_of(node)) == 4 else (0, 0, 0, 0)
    high, wide = kernel
    whole = list(kernel) == list(stride) and set(dilation) == {1} and set(padding) == {0}
    if not batch or not whole or grid[0] % high or grid[1] % wide:
        raise Unmatched("blocks do not stand side by side")
    parts = [batch, channels, high, wide, grid[0] // high, grid[1] // wide]
    x = call(node, aten.reshape.default, source(node), parts)
    x = call(node, aten.permute.default, x, [0, 1, 4, 2, 5, 3])
    return call(node, aten.reshape.default, x, list(shape_of(node)))
