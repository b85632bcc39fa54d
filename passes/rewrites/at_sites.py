"""Convolutions of other axes than the grid's: at every site. Require layouts."""

from __future__ import annotations

import torch
from torch.fx import Node

from ..facts import facts
from ..layout import Layout, Unmatched
from ..rewrite import rewrite
from ..rules.base import argument, pair, shape_of, source
from .base import call

aten = torch.ops.aten


@rewrite(aten.conv2d.default)
def over_frames(node: Node) -> Node:
    """conv2d over frames, with the sites as columns [N, C, T, sites] -> conv1d at every site."""
    layout = facts(source(node)).layout
    if not isinstance(layout, Layout) or not layout.is_plain(2) or layout.is_plain(3):
        raise Unmatched("its columns are no sites")
    kernel = shape_of(source(node, 1))[2:]
    stride, padding, dilation = (
        pair(argument(node, name), default)
        for name, default in (("stride", (1, 1)), ("padding", (0, 0)), ("dilation", (1, 1)))
    )
    if (kernel[1], stride[1], padding[1]) != (1, 1, 0):
        raise Unmatched("it reaches from site to site")
    batch, channels, frames, sites = shape_of(source(node))
    x = call(node, aten.permute.default, source(node), [0, 3, 1, 2])
    x = call(node, aten.reshape.default, x, [batch * sites, channels, frames])
    weight = call(node, aten.reshape.default, source(node, 1), list(shape_of(source(node, 1))[:3]))
    geometry = [[stride[0]], [padding[0]], [dilation[0]], argument(node, "groups")]
    x = call(node, aten.conv1d.default, x, weight, argument(node, "bias"), *geometry)
    x = call(node, aten.reshape.default, x, [batch, sites, *shape_of(x)[1:]])
    return call(node, aten.permute.default, x, [0, 2, 3, 1])


@rewrite(aten.conv1d.default)
def over_tokens(node: Node) -> Node:
    """conv1d of width one on [N, C, sites] -> product."""
    layout, weight = facts(source(node)).layout, source(node, 1)
    if not isinstance(layout, Layout) or layout.is_plain(2):
        raise Unmatched("its series is no sites")
    if shape_of(weight)[2] != 1 or shape_of(node)[2] != shape_of(source(node))[2]:
        raise Unmatched("it reaches from site to site")
    if argument(node, "groups") != 1:
        raise Unmatched("its channels are in groups")
    matrix = call(node, aten.reshape.default, weight, list(shape_of(weight)[:2]))
    result = call(node, aten.matmul.default, matrix, source(node))
    bias = argument(node, "bias")
    if bias is None:
        return result
    return call(node, aten.add.Tensor, result, call(node, aten.unsqueeze.default, bias, 1))
