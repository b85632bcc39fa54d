"""Operators over frames [N, C, T, H, W], as operators on pictures.

The sites stay those of a picture, and an edit of some pixels stays one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..rules.base import argument, shape_of, source
from .base import call

aten = torch.ops.aten


def conv3d(node: Node) -> Node | None:
    """conv3d -> conv2d of every output frame on the frames that it reads, as channels."""
    if node.target is not aten.conv3d.default:
        return None
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


def pool3d(node: Node) -> Node | None:
    """avg_pool3d or max_pool3d -> pool of pictures, and of the frames that each reads."""
    pools = {aten.avg_pool3d.default: aten.avg_pool2d, aten.max_pool3d.default: aten.max_pool2d}
    if node.target not in pools or argument(node, "ceil_mode"):
        return None
    kernel, padding = (_triple(argument(node, name)) for name in ("kernel_size", "padding"))
    stride = _triple(argument(node, "stride") or kernel)
    dilation = _triple(argument(node, "dilation", 1))
    if padding[0] or argument(node, "divisor_override"):
        return None
    x = _frames_read(node, source(node), kernel[0], stride[0], dilation[0])
    merge = aten.mean.dim if node.target is aten.avg_pool3d.default else aten.amax.default
    x = call(node, merge, x, [2])
    geometry: list[Any] = [kernel[1:], stride[1:], padding[1:]]
    if node.target is aten.avg_pool3d.default:
        geometry += [False, argument(node, "count_include_pad")]
    else:
        geometry += [dilation[1:]]
    return _as_video(node, call(node, pools[node.target].default, _by_frame(node, x), *geometry))


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


def pad_frames(node: Node) -> Node | None:
    """pad of frames -> frames joined, then a pad of pictures."""
    if node.target is not aten.pad.default or len(shape_of(node)) != 5:
        return None
    x, mode, value = source(node), argument(node, "mode"), argument(node, "value")
    left, right, top, bottom, first, last = ([*argument(node, "pad")] + [0] * 6)[:6]
    if len(argument(node, "pad")) > 6 or min(first, last) < 0:
        return None
    if first or last:
        x = _more_frames(node, x, first, last, mode, value)
    if not any((left, right, top, bottom)):
        return None if x is source(node) else x
    images = _merged(node, x)
    images = call(node, aten.pad.default, images, [left, right, top, bottom], mode, value)
    return call(node, aten.reshape.default, images, list(shape_of(node)))


def _more_frames(node: Node, x: Node, first: int, last: int, mode: str, value: Any) -> Node:
    frames = shape_of(x)[2]
    if mode == "constant":
        return call(node, aten.pad.default, x, [0, 0, 0, 0, first, last], mode, value)
    wanted = range(-first, frames + last)
    if mode == "reflect":
        read = [(frames - 1) - abs(abs(t) - (frames - 1)) for t in wanted]
    elif mode == "replicate":
        read = [min(max(t, 0), frames - 1) for t in wanted]
    else:
        read = [t % frames for t in wanted]
    ends = [call(node, aten.slice.Tensor, x, 2, t, t + 1) for t in read]
    parts = [*ends[:first], x, *ends[first + frames :]]
    return call(node, aten.cat.default, parts, 2)


def _merged(node: Node, video: Node) -> Node:
    """[N, C, T, H, W] -> [N, C * T, H, W]."""
    batch, _, _, height, width = shape_of(video)
    return call(node, aten.reshape.default, video, [batch, -1, height, width])


def nearest(node: Node) -> Node | None:
    """Nearest resize of frames, or of pictures by pixel centres -> upsample_nearest2d.

    Where sizes grow by whole factors, centres and corners give the same pixels.
    """
    exact = (aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact3d.vec)
    if node.target not in (*exact, aten.upsample_nearest3d.vec):
        return None
    x, sizes = source(node), list(shape_of(node)[2:])
    factors = [out // old for out, old in zip(sizes, shape_of(x)[2:], strict=True)]
    grown = [factor * old for factor, old in zip(factors, shape_of(x)[2:], strict=True)]
    if grown != sizes:
        return None
    if len(sizes) == 3 and factors[0] > 1:
        x = call(node, aten.repeat_interleave.self_int, x, factors[0], 2)
    if all(factor == 1 for factor in factors[-2:]):
        return x
    images = _merged(node, x) if len(sizes) == 3 else x
    images = call(node, aten.upsample_nearest2d.vec, images, sizes[-2:], None)
    same = len(sizes) == 2
    return images if same else call(node, aten.reshape.default, images, list(shape_of(node)))
