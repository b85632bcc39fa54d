"""Frames [N, C, T, H, W] padded and resized: frames joined, then pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ..layout import Unmatched
from ..rewrite import rewrite
from ..rules.base import argument, shape_of, source
from .base import call, reshaped

aten = torch.ops.aten


@rewrite(aten.pad.default)
def pad_frames(node: Node) -> Node:
    """pad of frames -> frames joined, then a pad of pictures."""
    if len(shape_of(node)) != 5:
        raise Unmatched("it pads no frames")
    x, mode, value = source(node), argument(node, "mode"), argument(node, "value")
    left, right, top, bottom, first, last = ([*argument(node, "pad")] + [0] * 6)[:6]
    if len(argument(node, "pad")) > 6 or min(first, last) < 0:
        raise Unmatched("it pads channels or crops frames")
    if mode == "constant" and not any((left, right, top, bottom)):
        raise Unmatched("it only adds empty frames")
    if first or last:
        x = _more_frames(node, x, first, last, mode, value)
    if not any((left, right, top, bottom)):
        return x
    images = _merged(node, x)
    images = call(node, aten.pad.default, images, [left, right, top, bottom], mode, value)
    return reshaped(node, images, shape_of(node))


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


@rewrite(
    *(aten._upsample_nearest_exact2d.vec, aten._upsample_nearest_exact3d.vec),
    aten.upsample_nearest3d.vec,
)
def nearest(node: Node) -> Node:
    """Nearest resize of frames, or of pictures by pixel centres -> upsample_nearest2d.

    Where sizes grow by whole factors, centres and corners give the same pixels.
    """
    x, sizes = source(node), list(shape_of(node)[2:])
    factors = [out // old for out, old in zip(sizes, shape_of(x)[2:], strict=True)]
    grown = [factor * old for factor, old in zip(factors, shape_of(x)[2:], strict=True)]
    if grown != sizes:
        raise Unmatched("sizes do not grow by whole factors")
    if len(sizes) == 3 and factors[0] > 1:
        x = call(node, aten.repeat_interleave.self_int, x, factors[0], 2)
    if all(factor == 1 for factor in factors[-2:]):
        return x
    images = _merged(node, x) if len(sizes) == 3 else x
    images = call(node, aten.upsample_nearest2d.vec, images, sizes[-2:], None)
    return reshaped(node, images, shape_of(node))


@rewrite(aten.upsample_nearest2d.vec)
def own_size(node: Node) -> Node:
    """Nearest resize to the size that is there -> nothing."""
    factors = argument(node, "scale_factors") or [1.0]
    if shape_of(node) != shape_of(source(node)) or any(factor != 1 for factor in factors):
        raise Unmatched("the size changes")
    return source(node)


@rewrite(aten.upsample_trilinear3d.vec)
def trilinear(node: Node) -> Node:
    """upsample_trilinear3d -> sums of neighbouring frames, then upsample_bilinear2d."""
    x, corners = source(node), argument(node, "align_corners")
    factors, (frames, *grid) = argument(node, "scale_factors"), shape_of(x)[2:]
    out, *size = shape_of(node)[2:]
    if out != frames:
        scale = 1 / factors[0] if factors else frames / out
        scale = (frames - 1) / max(out - 1, 1) if corners else scale
        x = _between(node, x, [_position(t, scale, corners) for t in range(out)])
    if size == grid:
        return x
    images = call(
        node, aten.upsample_bilinear2d.vec, _merged(node, x), size, corners, factors and factors[1:]
    )
    return reshaped(node, images, shape_of(node))


def _position(frame: int, scale: float, corners: bool) -> float:
    return frame * scale if corners else max((frame + 0.5) * scale - 0.5, 0.0)


def _between(node: Node, video: Node, positions: list[float]) -> Node:
    """The frames at fractional ``positions``, joined."""
    last, parts = shape_of(video)[2] - 1, []
    for position in positions:
        low = min(int(position), last)
        high, share = min(low + 1, last), min(position - low, 1.0)
        first, second = (
            call(node, aten.mul.Tensor, call(node, aten.slice.Tensor, video, 2, t, t + 1), weight)
            for t, weight in ((low, 1 - share), (high, share))
        )
        parts.append(call(node, aten.add.Tensor, first, second))
    return call(node, aten.cat.default, parts, 2)
