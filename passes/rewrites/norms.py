"""Norms."""

from __future__ import annotations

import operator
from typing import Any

import torch
from sparsify.codegen import norms
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import ResultOf, rewrite
from ..rules.base import argument, shape_of, source
from .base import call, call_giving, first_result

aten = torch.ops.aten


@rewrite(aten.group_norm.default)
def group_statistics(node: Node) -> Node:
    """group_norm -> norms.group_norm, which also returns mean and rstd."""
    names = ("num_groups", "weight", "bias", "eps")
    return _group_norm(node, *(argument(node, name) for name in names))


@rewrite(aten.instance_norm.default)
def instance_norm(node: Node) -> Node:
    """instance_norm -> norms.group_norm with one channel a group; with running statistics, x *
    scale + shift."""
    names = ("weight", "bias", "eps")
    if not argument(node, "use_input_stats"):
        known = ("weight", "bias", "running_mean", "running_var", "eps")
        return _affine(node, source(node), *(argument(node, name) for name in known))
    return _group_norm(node, shape_of(node)[1], *(argument(node, name) for name in names))


def _group_norm(node: Node, groups: int, weight: Any, bias: Any, eps: float) -> Node:
    value = source(node).meta["val"]
    if value.dim() < 3:
        raise Unmatched("it has no axes beside channels")
    wide = torch.promote_types(value.dtype, torch.float32)
    statistics = value.new_empty([value.shape[0], groups], dtype=wide)
    result = (node.meta["val"], statistics, statistics)
    arguments = (source(node), weight, bias, groups, eps)
    norm = call_giving(node, result, norms.group_norm, *arguments)
    return call(node, operator.getitem, norm, 0)


@rewrite(aten.linalg_vector_norm.default)
def vector_norm(node: Node) -> Node:
    """Euclidean norm over some axes -> root of the sum of squares."""
    if argument(node, "ord") != 2:
        raise Unmatched("the norm is not the Euclidean one")
    dim, keepdim = argument(node, "dim"), argument(node, "keepdim")
    if dim is None or argument(node, "dtype") is not None:
        raise Unmatched("it is over all axes or casts")
    squares = call(node, aten.mul.Tensor, source(node), source(node))
    return call(node, aten.sqrt.default, call(node, aten.sum.dim_IntList, squares, dim, keepdim))


@rewrite(ResultOf(aten._native_batch_norm_legit_no_training))
def batch_norm(node: Node) -> Node:
    """Batch norm with running statistics -> x * scale + shift."""
    x, weight, bias, mean, variance, _, eps = first_result(node).args
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
