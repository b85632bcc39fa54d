"""Operators over frames [N, C, T, H, W], as operators on pictures.

The sites stay those of a picture, and an edit of some pixels stays one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import rewrite
from ..rules.base import argument, shape_of, source
from .base import call

aten = torch.ops.aten


@rewrite(aten.conv3d.default)
def conv3d(node: Node) -> Node:
    """conv3d -> conv2d of every output frame on the frames that it reads, as channels."""
    x, weight, groups = source(node), source(node, 1), argument(node, "groups")
    stride, padding, dilation = (
        _triple(argument(node, name)) for name in ("stride", "padding", "dilation")
    )
    if padding[0]:
        pads = [0, 0, 0, 0, padding[0], padding[0]]
        x = call(node, aten.pad.default, x, pads, "constant", 0.0)
    out, channels, taps, *kernel = shape_of(weight)
    images = _by_frame(node, _frames_read(node, x, taps, stride[0], dilation[0]))
    matrix = call(node, aten.reshape.default, weight, [out, channels * taps, *kernel])
    geometry = [stride[1:], padding[1:], dilation[1:], groups]
    result = call(node, aten.conv2d.default, images, matrix, argument(node, "bias"), *geometry)
    return _as_video(node, result)


@rewrite(aten.conv_transpose3d.input)
def conv_transpose3d(node: Node) -> Node:
    """conv_transpose3d -> frames set apart by zeros, then conv_transpose2d of what each reads."""
    x, weight, groups = source(node), source(node, 1), argument(node, "groups")
    names = ("stride", "padding", "output_padding", "dilation")
    stride, padding, extra, dilation = (_triple(argument(node, name)) for name in names)
    channels, out, taps, *kernel = shape_of(weight)
    x = _apart(node, x, stride[0])
    before = dilation[0] * (taps - 1) - padding[0]
    pads = [0, 0, 0, 0, before, before + extra[0]]
    x = call(node, aten.pad.default, x, pads, "constant", 0.0) if any(pads) else x
    images = _by_frame(node, _frames_read(node, x, taps, 1, dilation[0]))
    matrix = call(node, aten.permute.default, weight, [0, 2, 1, 3, 4])
    matrix = matrix if taps == 1 else call(node, aten.flip.default, matrix, [1])
    matrix = call(node, aten.reshape.default, matrix, [channels * taps, out, *kernel])
    geometry = [stride[1:], padding[1:], extra[1:], groups, dilation[1:]]
    result = call(
        node, aten.conv_transpose2d.input, images, matrix, argument(node, "bias"), *geometry
    )
    return _as_video(node, result)


def _apart(node: Node, video: Node, stride: int) -> Node:
    """``stride - 1`` empty frames between any two."""
    if stride == 1:
        return video
    batch, channels, frames, height, width = shape_of(video)
    x = call(node, aten.unsqueeze.default, video, 3)
    x = call(node, aten.pad.default, x, [0, 0, 0, 0, 0, stride - 1], "constant", 0.0)
    x = call(node, aten.reshape.default, x, [batch, channels, frames * stride, height, width])
    return call(node, aten.slice.Tensor, x, 2, 0, (frames - 1) * stride + 1)


@rewrite(aten.avg_pool3d.default, aten.max_pool3d.default)
def pool3d(node: Node) -> Node:
    """avg_pool3d or max_pool3d -> pool of pictures, and of the frames that each reads."""
    is_average = node.target is aten.avg_pool3d.default
    if argument(node, "ceil_mode"):
        raise Unmatched("ceil_mode")
    kernel, padding = (_triple(argument(node, name)) for name in ("kernel_size", "padding"))
    stride = _triple(argument(node, "stride") or kernel)
    dilation = _triple(argument(node, "dilation", 1))
    if padding[0] or argument(node, "divisor_override"):
        raise Unmatched("it pads frames or has a divisor of its own")
    x = _frames_read(node, source(node), kernel[0], stride[0], dilation[0])
    x = call(node, aten.mean.dim if is_average else aten.amax.default, x, [2])
    how = [False, argument(node, "count_include_pad")] if is_average else [dilation[1:]]
    pool = aten.avg_pool2d.default if is_average else aten.max_pool2d.default
    images = call(node, pool, _by_frame(node, x), kernel[1:], stride[1:], padding[1:], *how)
    return _as_video(node, images)


def _triple(value: Any) -> list[int]:
    return [value] * 3 if isinstance(value, int) else list(value) * (3 // len(value))


def _frames_read(node: Node, x: Node, taps: int, stride: int, dilation: int) -> Node:
    """[N, C, T, H, W] -> [N, C, taps, T_out, H, W]: what each output frame reads."""
    frames, parts = shape_of(node)[2], []
    for tap in range(taps):
        start = tap * dilation
        stop = start + stride * (frames - 1) + 1
        parts.append(call(node, aten.slice.Tensor, x, 2, start, stop, stride))
    return call(node, aten.stack.default, parts, 2)


def _by_frame(node: Node, video: Node) -> Node:
    """[N, ..., T, H, W] -> [N * T, prod(...), H, W]."""
    batch, *channels, frames, height, width = shape_of(video)
    last = len(channels) + 1
    order = [0, last, *range(1, last), last + 1, last + 2]
    by_frame = call(node, aten.permute.default, video, order)
    return call(node, aten.reshape.default, by_frame, [batch * frames, -1, height, width])


def _as_video(node: Node, images: Node) -> Node:
    """[N * T, C, H, W] -> [N, C, T, H, W], the shape of ``node``."""
    batch, channels, frames, height, width = shape_of(node)
    video = call(node, aten.reshape.default, images, [batch, frames, channels, height, width])
    return call(node, aten.permute.default, video, [0, 2, 1, 3, 4])
