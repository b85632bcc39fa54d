"""Resizing, pooling, padding, pixel shuffles: gathers with little or no arithmetic."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from sparsify.codegen import ops, tables
from sparsify.codegen.geometry import (
    Geometry,
    Nearest,
    Pad,
    Pair,
    Resize,
    TransposedWindow,
    Window,
)
from torch.fx import Node

from ..facts import facts
from ..layout import Layout, Space, Unmatched, joint, plain
from ..packing.place import Place
from .base import Rule, argument, image_layout, layout_of, pair, register, shape_of, source

aten = torch.ops.aten


class Resample(Rule):
    """Shared: an image in, an image out, each output site reads some input sites."""

    def layout(self, node: Node) -> Layout:
        image = image_layout(node)
        self.geometry(node)
        return image.with_image(shape_of(node))

    def geometry(self, node: Node) -> Geometry | None:
        raise NotImplementedError

    def grids(self, node: Node) -> tuple[Pair, Pair]:
        in_grid: Any = shape_of(source(node))[-2:]
        out_grid: Any = shape_of(node)[-2:]
        return in_grid, out_grid


def _scale(node: Node, grids: tuple[Pair, Pair], align_corners: bool = False) -> Any:
    """Input pixels per output pixel, as torch derives it from sizes or factors."""
    factors = argument(node, "scale_factors")
    scales = []
    for axis, (size, out) in enumerate(zip(*grids, strict=True)):
        if align_corners:
            scales.append((size - 1) / (out - 1) if out > 1 else 0.0)
        else:
            scales.append(1.0 / factors[axis] if factors else size / out)
    return tuple(scales)


@register(aten.upsample_nearest2d, aten._upsample_nearest_exact2d)
class NearestRule(Resample):
    """Nearest resize, by the corners or the centres of pixels."""

    cheap = True

    def geometry(self, node: Node) -> Geometry:
        grids = self.grids(node)
        scale = _scale(node, grids)
        if node.target is aten._upsample_nearest_exact2d.vec:
            return self._by_centres(Nearest(*grids, scale, 0.5))
        for size, out, step in zip(*grids, scale, strict=True):
            if out in (size, 2 * size) and step != size / out:
                raise Unmatched("an odd factor, which the CPU replaces by 1 or 2")
        return Nearest(*grids, scale)

    def _by_centres(self, geometry: Nearest) -> Nearest:
        """Torch's kernels round in several ways, which are one for simple factors."""
        for axis, (out, scale) in enumerate(zip(geometry.out_grid, geometry.scale, strict=True)):
            if (scale * 256).is_integer():
                continue
            at = [(position + 0.5) * scale for position in range(out)]
            if any(abs(x - round(x)) < 1e-5 * max(1.0, x) for x in at if round(x) > 0):
                raise Unmatched(f"pixels that rounding chooses along axis {axis}")
        return geometry

    def emit(self, node: Node, place: Place) -> Node:
        if place.is_baseline:
            return place.moved(self.geometry(node)).packed(source(node))
        return place.call(ops.gather_one, *place.taps(source(node), self.geometry(node)))

    def emit_all(self, node: Node, place: Place) -> Node | None:
        """A smaller map reads few of the sites: no need to write the others out."""
        in_grid, out_grid = self.grids(node)
        if facts(source(node)).mask is None or prod(out_grid) >= prod(in_grid):
            return None
        return place.call(ops.unpack, self.emit(node, place), *out_grid)


class Blend(Resample):
    """Sums of rows and columns."""

    def geometry(self, node: Node) -> Resize:
        raise NotImplementedError

    def emit(self, node: Node, place: Place) -> Node:
        geometry = self.geometry(node)
        weights = place.table(tables.blend_weights, geometry)
        return place.call(ops.gather_blend, *place.taps(source(node), geometry), weights)


_KINDS = {
    aten.upsample_bilinear2d: "bilinear",
    aten.upsample_bicubic2d: "bicubic",
    aten._upsample_bilinear2d_aa: "bilinear, antialiased",
    aten._upsample_bicubic2d_aa: "bicubic, antialiased",
}


@register(*_KINDS)
class Interpolate(Blend):
    """Bilinear and bicubic resize."""

    def geometry(self, node: Node) -> Resize:
        grids, corners = self.grids(node), bool(argument(node, "align_corners"))
        kind = _KINDS[node.target.overloadpacket]  # type: ignore[union-attr]
        scale = _scale(node, grids, corners)
        if kind.endswith("antialiased"):
            if corners:
                raise Unmatched("antialiased between corners")
            if any(a == b and step != 1 for a, b, step in zip(*grids, scale, strict=True)):
                raise Unmatched("an odd factor, which torch replaces by 1")
        return Resize(*grids, scale, kind, corners)


@register(aten.adaptive_avg_pool2d)
class AdaptiveAverage(Blend):
    """Means of blocks, which may overlap."""

    def geometry(self, node: Node) -> Resize:
        return Resize(*self.grids(node), (1.0, 1.0), "average")


@register(ops.adaptive_max_pool)
class AdaptiveMax(Resample):
    """Maxima of blocks, which may overlap."""

    def geometry(self, node: Node) -> Resize:
        return Resize(*self.grids(node), (1.0, 1.0), "average")

    def emit(self, node: Node, place: Place) -> Node:
        return place.call(ops.gather_max, *place.taps(source(node), self.geometry(node)))


def _window(node: Node) -> Window:
    """What a pool or an unfold reads, with whole windows only."""
    kernel = pair(argument(node, "kernel_size"))
    stride = pair(argument(node, "stride"), kernel)
    padding = pair(argument(node, "padding"), (0, 0))
    dilation = pair(argument(node, "dilation", [1, 1]))
    in_grid: Any = shape_of(source(node))[-2:]
    sizes = zip(in_grid, padding, dilation, kernel, stride, strict=True)
    rows, columns = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, p, d, k, s in sizes)
    return Window(in_grid, (rows, columns), kernel, stride, padding, dilation)


class Pool(Resample):
    """Shared geometry of pools; ``ceil_mode`` is refused where it matters."""

    def geometry(self, node: Node) -> Window:
        window = _window(node)
        if window.out_grid != shape_of(node)[-2:]:
            raise Unmatched("ceil_mode")
        return window


@register(aten.avg_pool2d)
class AveragePool(Pool):
    """Average pool."""

    def emit(self, node: Node, place: Place) -> Node:
        geometry = self.geometry(node)
        divisor = argument(node, "divisor_override")
        if divisor is None and (argument(node, "count_include_pad") or not any(geometry.padding)):
            divisor = geometry.kernel[0] * geometry.kernel[1]
        if divisor is None:
            divisor = place.table(tables.pool_divisor, geometry)
        return place.call(ops.gather_mean, *place.taps(source(node), geometry), divisor)


@register(aten.max_pool2d)
class MaxPool(Pool):
    """Max pool."""

    def emit(self, node: Node, place: Place) -> Node:
        return place.call(ops.gather_max, *place.taps(source(node), self.geometry(node)))


@register(ops.max_pool_indices)
class MaxPoolIndices(Resample):
    """Where the maxima are."""

    def geometry(self, node: Node) -> Window:
        grids, lists = self.grids(node), node.args[1:]
        return Window(*grids, *map(pair, lists))

    def emit(self, node: Node, place: Place) -> Node:
        geometry = self.geometry(node)
        sites = place.table(tables.tap_sites, geometry)
        return place.call(ops.gather_argmax, *place.taps(source(node), geometry), sites)


@register(aten.max_unpool2d)
class MaxUnpool(Resample):
    """Values back to where the maxima of a pool were."""

    def geometry(self, node: Node) -> TransposedWindow:
        indices = source(node, 1)
        if indices.target is not ops.max_pool_indices:
            raise Unmatched("its indices do not come from a pool")
        window = MaxPoolIndices().geometry(indices)
        if any(k > s for k, s in zip(window.kernel, window.stride, strict=True)):
            raise Unmatched("windows overlap")
        if window.in_grid != shape_of(node)[-2:] or window.dilation != (1, 1):
            raise Unmatched("another size than that of the pool")
        grids = self.grids(node)
        return TransposedWindow(*grids, window.kernel, window.stride, window.padding, (1, 1))

    def emit(self, node: Node, place: Place) -> Node:
        geometry = self.geometry(node)
        values, indices = (place.taps(x, geometry) for x in (source(node), source(node, 1)))
        sites = place.table(tables.own_sites, geometry)
        return place.call(ops.gather_unpool, values, indices, sites)


def zero_pad(node: Node) -> tuple[int, int, int, int] | None:
    """(left, right, top, bottom) that ``node`` pads pictures [N, C, H, W] by with zeros, if so."""
    if node.op != "call_function" or node.target is not aten.pad.default:
        return None
    pads = [*argument(node, "pad"), *[0] * 8][:8]
    is_zero = argument(node, "mode") == "constant" and not argument(node, "value")
    if not is_zero or len(shape_of(node)) != 4 or any(pads[4:]):
        return None
    left, right, top, bottom = pads[:4]
    return left, right, top, bottom


@register(aten.pad)
class PadRule(Resample):
    """Spatial padding in any mode; constant padding of plain axes moves no site."""

    def layout(self, node: Node) -> Layout:
        if not self._is_beside(node):
            return super().layout(node)
        layout = layout_of(source(node))
        for dim, (old, new) in enumerate(zip(layout.shape, shape_of(node), strict=True)):
            layout = layout if old == new else layout.replace(dim, new)
        return layout

    def _is_beside(self, node: Node) -> bool:
        """Only plain axes are padded."""
        layout, pads = layout_of(source(node)), argument(node, "pad")
        padded = [-1 - i // 2 for i, pad in enumerate(pads) if pad]
        return argument(node, "mode") == "constant" and all(map(layout.is_plain, padded))

    def before(self, node: Node) -> Pair:
        """(top, left)."""
        pads: list[int] = argument(node, "pad")
        if any(pads[4:]):
            raise Unmatched("pads channels or batch")
        return pads[2] if len(pads) > 2 else 0, pads[0]

    def geometry(self, node: Node) -> Pad | None:
        if self._is_beside(node):
            return None
        if argument(node, "mode") == "circular" and min(argument(node, "pad")) < 0:
            raise Unmatched("wraps around what it crops")
        return Pad(*self.grids(node), self.before(node), argument(node, "mode"))

    def emit(self, node: Node, place: Place) -> Node:
        value, geometry = argument(node, "value") or 0.0, self.geometry(node)
        if geometry is None:
            return self._pad_beside(node, place, value)
        taps = place.taps(source(node), geometry)
        return place.call(ops.gather_one, *taps, value)

    def _pad_beside(self, node: Node, place: Place, value: float) -> Node:
        layout, given = layout_of(source(node)), argument(node, "pad")
        rank = len(layout.packed_shape())
        pads = [0] * (2 * rank)
        for i, pad in enumerate(given):
            at = 2 * (rank - 1 - layout.packed_dim(-1 - i // 2)) + i % 2
            if pad:
                pads[at] = pad
        return place.call(aten.pad.default, place.packed(source(node)), pads, "constant", value)


@register(ops.shuffle, aten.pixel_shuffle)
class PixelShuffle(Resample):
    """[N, C*high*wide, H, W] -> [N, C, high*H, wide*W]."""

    def _block(self, node: Node) -> Pair:
        (rows, columns), (height, width) = self.grids(node)
        return height // rows, width // columns

    def geometry(self, node: Node) -> Nearest:
        high, wide = self._block(node)
        return Nearest(*self.grids(node), (1 / high, 1 / wide))

    def emit(self, node: Node, place: Place) -> Node:
        geometry, block = self.geometry(node), self._block(node)
        phase = place.table(tables.shuffle_phase, geometry, block)
        taps = place.taps(source(node), geometry)
        return place.call(ops.gather_shuffle, *taps, phase, block[0] * block[1])


@register(ops.unshuffle, aten.pixel_unshuffle)
class PixelUnshuffle(Resample):
    """[N, C, high*H, wide*W] -> [N, C*high*wide, H, W]."""

    def geometry(self, node: Node) -> Window:
        (height, width), (rows, columns) = self.grids(node)
        block = height // rows, width // columns
        return Window(*self.grids(node), block, block)

    def emit(self, node: Node, place: Place) -> Node:
        return place.call(ops.gather_unshuffle, *place.taps(source(node), self.geometry(node)))


@register(aten.im2col)
class Unfold(PixelUnshuffle):
    """[N, C, H, W] -> [N, C*taps, H'*W']: what a convolution would read."""

    def layout(self, node: Node) -> Layout:
        image = image_layout(node)
        height, width = self.geometry(node).out_grid
        return Layout((*image.dims[:1], plain(shape_of(node)[1]), joint(Space((height, width)))))

    def geometry(self, node: Node) -> Window:
        window = _window(node)
        if min(window.out_grid) < 2:
            raise Unmatched("a single row or column of blocks")
        return window
