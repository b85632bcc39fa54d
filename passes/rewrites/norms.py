"""Norms and padding."""

from __future__ import annotations

import operator
from typing import Any

import torch
from sparsify.codegen import norms
from torch.fx import Node

from ..rules.base import argument, shape_of, source
from .base import call, result_of

aten = torch.ops.aten


def string_padding(node: Node) -> Node | None:
    """conv2d(padding="same" | "valid") -> conv2d with numbers (and a pad if it is uneven)."""
    if node.target is not aten.conv2d.padding:
        return None
    x, weight = source(node), source(node, 1)
    bias, stride = argument(node, "bias"), argument(node, "stride")
    dilation, groups = argument(node, "dilation"), argument(node, "groups")
    totals = [0, 0]
    if argument(node, "padding") == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, shape_of(weight)[-2:], strict=False)]
    low = [total // 2 for total in totals]
    if any(total % 2 for total in totals):
        top, left = low
        pads = [left, totals[1] - left, top, totals[0] - top]
        x, low = call(node, aten.pad.default, x, pads, "constant", 0.0), [0, 0]
    return call(node, aten.conv2d.default, x, weight, bias, stride, low, dilation, groups)


def group_statistics(node: Node) -> Node | None:
    """group_norm -> norms.group_norm, which also returns mean and rstd."""
    if node.target is not aten.group_norm.default:
        return None
    names = ("num_groups", "weight", "bias", "eps")
    return _group_norm(node, *(argument(node, name) for name in names))


def instance_norm(node: Node) -> Node | None:
    """instance_norm -> norms.group_norm with one channel a group; with running statistics, x *
    scale + shift."""
    if node.target is not aten.instance_norm.default:
        return None
    names = ("weight", "bias", "eps")
    if not argument(node, "use_input_stats"):
        known = ("weight", "bias", "running_mean", "running_var", "eps")
        return _affine(node, source(node), *(argument(node, name) for name in known))
    return _group_norm(node, shape_of(node)[1], *(argument(node, name) for name in names))


def _group_norm(node: Node, groups: int, weight: Any, bias: Any, eps: float) -> Node:
    norm = call(node, norms.group_norm, source(node), weight, bias, groups, eps)
    return call(node, operator.getitem, norm, 0)


def vector_norm(node: Node) -> Node | None:
    """Euclidean norm over some axes -> root of the sum of squares."""
    if node.target is not aten.linalg_vector_norm.default or argument(node, "ord") != 2:
        return None
    dim, keepdim = argument(node, "dim"), argument(node, "keepdim")
    if dim is None or argument(node, "dtype") is not None:
        return None
    squares = call(node, aten.mul.Tensor, source(node), source(node))
    return call(node, aten.sqrt.default, call(node, aten.sum.dim_IntList, squares, dim, keepdim))


def batch_norm(node: Node) -> Node | None:
    """Batch norm with running statistics -> x * scale + shift."""
    norm = result_of(node, aten._native_batch_norm_legit_no_training.default)
    if norm is None:
        return None
    x, weight, bias, mean, variance, _, eps = norm.args
    return _affine(node, x, weight, bias, mean, variance, eps)


def _affine(node: Node, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, eps: Any) -> Node:
    """(x - mean) / sqrt(variance + eps) * weight + bias."""
    shape = [1, -1] + [1] * (len(shape_of(node)) - 2)
    scale = call(node, aten.rsqrt.default, call(node, aten.add.Tensor, variance, eps))
    if weight is not None:
        scale = call(node, aten.mul.Tensor, scale, weight)
    shift = call(node, aten.neg.default, call(node, aten.mul.Tensor, mean, scale))
    if bias is not None:
        shift = call(node, aten.add.Tensor, shift, bias)
    scale = call(node, aten.reshape.default, scale, shape)
    shift = call(node, aten.reshape.default, shift, shape)
    return call(node, aten.add.Tensor, call(node, aten.mul.Tensor, x, scale), shift)
