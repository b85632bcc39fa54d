"""Convolutions over frames, as convolutions of pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..rules.base import argument, shape_of, source
from .base import call

aten = torch.ops.aten


def conv3d(node: Node) -> Node | None:
    """conv3d [N, C, T, H, W] -> conv2d of every output frame on the frames that it reads.

    The frames that one output frame reads become channels, so the sites stay those of a picture
    and an edit of some pixels stays one.
    """
    if node.target is not aten.conv3d.default or argument(node, "groups") != 1:
        return None
    x, weight = source(node), source(node, 1)
    stride, padding, dilation = (
        _triple(argument(node, name)) for name in ("stride", "padding", "dilation")
    )
    if padding[0]:
        pads = [0, 0, 0, 0, padding[0], padding[0]]
        x = call(node, aten.pad.default, x, pads, "constant", 0.0)
    batch, _, frames, height, width = shape_of(node)
    out, channels, taps, *kernel = shape_of(weight)
    read = _frames_read(node, x, taps, frames, stride[0], dilation[0])
    images = _merged(node, read)
    matrix = call(node, aten.permute.default, weight, [0, 2, 1, 3, 4])
    matrix = call(node, aten.reshape.default, matrix, [out, taps * channels, *kernel])
    geometry = [stride[1:], padding[1:], dilation[1:]]
    result = call(node, aten.conv2d.default, images, matrix, argument(node, "bias"), *geometry)
    result = call(node, aten.reshape.default, result, [batch, frames, out, height, width])
    return call(node, aten.permute.default, result, [0, 2, 1, 3, 4])


def _triple(value: Any) -> list[int]:
    return [value] * 3 if isinstance(value, int) else list(value) * (3 // len(value))


def _frames_read(node: Node, x: Node, taps: int, frames: int, stride: int, dilation: int) -> Node:
    """[N, C, T, H, W] -> [N, taps * C, T_out, H, W]: what each output frame reads."""
    parts = []
    for tap in range(taps):
        start = tap * dilation
        stop = start + stride * (frames - 1) + 1
        parts.append(call(node, aten.slice.Tensor, x, 2, start, stop, stride))
    return parts[0] if taps == 1 else call(node, aten.cat.default, parts, 1)


def _merged(node: Node, video: Node) -> Node:
    """[N, C, T, H, W] -> [N * T, C, H, W]."""
    batch, channels, frames, height, width = shape_of(video)
    by_frame = call(node, aten.permute.default, video, [0, 2, 1, 3, 4])
    return call(node, aten.reshape.default, by_frame, [batch * frames, channels, height, width])
