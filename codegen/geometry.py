"""Which input site each tap of each output site reads.

A *geometry* maps the sites of an output grid to sites of an input grid. Everything spatial
(convolution, pooling, resampling, padding, pixel shuffle) is a gather through one of these.
Sites are numbered row by row: ``site = y * W + x``. Geometries are named tuples, which fx prints as
executable code.
"""

from __future__ import annotations

from collections.abc import Hashable
from math import prod
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
OUTSIDE = -1  # a tap that reads zero padding


class Geometry(Hashable, Protocol):
    """What is read is a product of rows and columns: each axis has taps of its own."""

    @property
    def in_grid(self) -> Pair: ...

    @property
    def out_grid(self) -> Pair: ...

    def taps(self, position: Tensor, axis: int) -> Tensor:
        """Where positions int64 [n] along ``axis`` (0: y, 1: x) of the output grid read.

        int64 [n, taps] along the same axis of the input grid, beyond it for zero padding.
        """


def axes(geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Offsets of the taps of all rows int64 [H', ky] and columns int64 [W', kx].

    A tap of a row and one of a column add up to the site that is read; to something negative where
    either is padding.
    """
    offsets, (height, width) = [], geometry.in_grid
    for axis, step in ((0, width), (1, 1)):
        at = geometry.taps(torch.arange(geometry.out_grid[axis], device="cpu"), axis)
        inside = (at >= 0) & (at < geometry.in_grid[axis])
        offsets.append(torch.where(inside, at * step, -height * width))
    return offsets[0], offsets[1]


def read(geometry: Geometry, sites: Tensor, items: int = 1) -> Tensor:
    """``sites`` int64 [S] of the output grid -> sites int64 [S, taps] of the input grid, each of
    the same item of a batch of ``items``."""
    rows, columns = axes(geometry)
    if items == 1:
        y, x = _rows_columns(sites, geometry.out_grid)
        return (rows[y].unsqueeze(2) + columns[x].unsqueeze(1)).flatten(1).clamp(min=OUTSIDE)
    inside, item = within(sites, prod(geometry.out_grid))
    reads = read(geometry, inside)
    first = (item * prod(geometry.in_grid)).unsqueeze(1)
    return torch.where(reads == OUTSIDE, OUTSIDE, reads + first)


def within(sites: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sites of a batch, of ``count`` an item -> those within the item, and the items."""
    return sites.remainder(count), sites.div(count, rounding_mode="floor")


def _rows_columns(sites: Tensor, grid: Pair) -> tuple[Tensor, Tensor]:
    return sites.div(grid[1], rounding_mode="floor"), sites.remainder(grid[1])


def _steps(count: int, step: int) -> Tensor:
    return torch.arange(0, count * step, step, device="cpu")


class Window(NamedTuple):
    """Sliding window of a convolution or a pool; ``padding`` is (top, left)."""

    in_grid: Pair
    out_grid: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def taps(self, position: Tensor, axis: int) -> Tensor:
        first = position * self.stride[axis] - self.padding[axis]
        return first.unsqueeze(1) + _steps(self.kernel[axis], self.dilation[axis])


class TransposedWindow(NamedTuple):
    """Transposed convolution: tap ``k`` reads ``(o + padding - k * dilation) / stride``."""

    in_grid: Pair
    out_grid: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def taps(self, position: Tensor, axis: int) -> Tensor:
        steps = _steps(self.kernel[axis], self.dilation[axis])
        reach = (position + self.padding[axis]).unsqueeze(1) - steps
        aligned = reach.remainder(self.stride[axis]) == 0
        return torch.where(
            aligned, reach.div(self.stride[axis], rounding_mode="floor"), torch.full_like(reach, -1)
        )


class Nearest(NamedTuple):
    """Nearest-neighbour resize: ``floor(o * scale)`` in float32, as torch computes it."""

    in_grid: Pair
    out_grid: Pair
    scale: tuple[float, float]

    def taps(self, position: Tensor, axis: int) -> Tensor:
        source = (position.to(torch.float32) * self.scale[axis]).floor().to(torch.int64)
        return source.clamp(max=self.in_grid[axis] - 1).unsqueeze(1)


class Bilinear(NamedTuple):
    """Bilinear resize: four taps a site; :meth:`weights` gives their shares."""

    in_grid: Pair
    out_grid: Pair
    scale: tuple[float, float]
    align_corners: bool

    def taps(self, position: Tensor, axis: int) -> Tensor:
        low = self._origin(position, axis).floor().to(torch.int64)
        return torch.stack([low, low + 1], 1).clamp(max=self.in_grid[axis] - 1)

    def _origin(self, position: Tensor, axis: int) -> Tensor:
        at = position.to(torch.float64)
        # A tensor: exporters to ONNX round numbers to float32.
        scale = torch.tensor(self.scale[axis], dtype=torch.float64, device="cpu")
        return at * scale if self.align_corners else ((at + 0.5) * scale - 0.5).clamp(min=0)

    def _shares(self, position: Tensor, axis: int) -> Tensor:
        at = self._origin(position, axis)
        share = (at - at.floor().clamp(max=self.in_grid[axis] - 1)).clamp(0, 1)
        return torch.stack([1 - share, share], 1)

    def weights(self, sites: Tensor) -> Tensor:
        """float64 [S, 4], in the order of :func:`read`."""
        y, x = _rows_columns(sites, self.out_grid)
        down, across = self._shares(y, 0), self._shares(x, 1)
        return (down.unsqueeze(2) * across.unsqueeze(1)).flatten(1)


class Pad(NamedTuple):
    """Spatial padding by ``(top, left)``; ``mode`` as in :func:`torch.nn.functional.pad`."""

    in_grid: Pair
    out_grid: Pair
    before: Pair
    mode: str

    def taps(self, position: Tensor, axis: int) -> Tensor:
        at, size = position - self.before[axis], self.in_grid[axis]
        if self.mode == "reflect":
            at = (size - 1) - (at.abs() - (size - 1)).abs()
        elif self.mode == "replicate":
            at = at.clamp(0, size - 1)
        elif self.mode == "circular":
            at = at.remainder(size)
        return at.unsqueeze(1)


class Same(NamedTuple):
    """Every site reads itself: used to move a value between two masks of one grid."""

    in_grid: Pair

    @property
    def out_grid(self) -> Pair:
        return self.in_grid

    def taps(self, position: Tensor, axis: int) -> Tensor:
        return position.unsqueeze(1)


def all_sites(grid: Pair, items: int = 1) -> Tensor:
    """int64 [items * H*W]: every site of ``grid``, of each item."""
    return torch.arange(items * grid[0] * grid[1], device="cpu")


def grow(mask: Tensor, geometry: Geometry) -> Tensor:
    """Output sites (bool [..., H', W']) of which some tap reads an active input site."""
    if isinstance(geometry, Window):
        return _grow_window(mask, geometry)
    reads = read(geometry, all_sites(geometry.out_grid))
    hit = mask.flatten(-2)[..., reads.clamp(min=0)] & (reads != OUTSIDE)
    return hit.any(-1).unflatten(-1, geometry.out_grid)


def _grow_window(mask: Tensor, window: Window) -> Tensor:
    """The same by max-pooling, which costs far less than a table of all sites."""
    (top, left), ends = window.padding, []
    for axis in (0, 1):
        span = (window.kernel[axis] - 1) * window.dilation[axis] + 1
        reach = (window.out_grid[axis] - 1) * window.stride[axis] + span
        ends.append(reach - window.padding[axis] - window.in_grid[axis])
    padded = F.pad(mask.to(torch.float32), (left, ends[1], top, ends[0]))
    # Items are channels, which a pool keeps apart.
    channels = padded[None, None] if mask.dim() == 2 else padded[None]
    pooled = F.max_pool2d(channels, window.kernel, window.stride, dilation=window.dilation)
    return (pooled[0, 0] if mask.dim() == 2 else pooled[0]) > 0
