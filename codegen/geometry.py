"""Which input site each tap of each output site reads.

A *geometry* maps the sites of an output grid to sites of an input grid. Everything spatial
(convolution, pooling, resampling, padding, pixel shuffle) is a gather through one of these.
Sites are numbered row by row: ``site = y * W + x``. Geometries are named tuples, which fx prints as
executable code.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, int]
OUTSIDE = -1  # a tap that reads zero padding


class Geometry(Protocol):
    """``read`` gives the input sites of output sites; ``grow`` moves a mask forward."""

    @property
    def in_grid(self) -> Pair: ...

    @property
    def out_grid(self) -> Pair: ...

    def read(self, sites: Tensor) -> Tensor:
        """``sites`` int64 [S] of the output grid -> int64 [S, taps] of the input grid."""


def _combine(ys: Tensor, xs: Tensor, grid: Pair) -> Tensor:
    """Per-axis taps [S, ky] and [S, kx], all inside the grid -> sites [S, ky*kx]."""
    return ((ys * grid[1]).unsqueeze(2) + xs.unsqueeze(1)).flatten(1)


def _combine_checked(ys: Tensor, xs: Tensor, grid: Pair) -> Tensor:
    """The same of taps that may lie out of range, which become OUTSIDE."""
    height, width = grid
    # Negative, whatever site of the grid is added.
    rows = torch.where((ys >= 0) & (ys < height), ys, -height)
    columns = torch.where((xs >= 0) & (xs < width), xs, -height * width)
    return _combine(rows, columns, grid).clamp(min=OUTSIDE)


def _rows_columns(sites: Tensor, grid: Pair) -> tuple[Tensor, Tensor]:
    return sites.div(grid[1], rounding_mode="floor"), sites.remainder(grid[1])


class Window(NamedTuple):
    """Sliding window of a convolution or a pool; ``padding`` is (top, left)."""

    in_grid: Pair
    out_grid: Pair
    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)

    def _axis(self, position: Tensor, axis: int) -> Tensor:
        taps = torch.arange(self.kernel[axis], device=position.device) * self.dilation[axis]
        return position.unsqueeze(1) * self.stride[axis] - self.padding[axis] + taps

    def read(self, sites: Tensor) -> Tensor:
        y, x = _rows_columns(sites, self.out_grid)
        return _combine_checked(self._axis(y, 0), self._axis(x, 1), self.in_grid)


class TransposedWindow(NamedTuple):
    """Transposed convolution: tap ``k`` reads ``(o + padding - k * dilation) / stride``."""

    in_grid: Pair
    out_grid: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair

    def _axis(self, position: Tensor, axis: int) -> Tensor:
        taps = torch.arange(self.kernel[axis], device=position.device) * self.dilation[axis]
        reach = position.unsqueeze(1) + self.padding[axis] - taps
        aligned = reach.remainder(self.stride[axis]) == 0
        return torch.where(
            aligned, reach.div(self.stride[axis], rounding_mode="floor"), torch.full_like(reach, -1)
        )

    def read(self, sites: Tensor) -> Tensor:
        y, x = _rows_columns(sites, self.out_grid)
        return _combine_checked(self._axis(y, 0), self._axis(x, 1), self.in_grid)


class Nearest(NamedTuple):
    """Nearest-neighbour resize: ``floor(o * scale)`` in float32, as torch computes it."""

    in_grid: Pair
    out_grid: Pair
    scale: tuple[float, float]

    def _axis(self, position: Tensor, axis: int) -> Tensor:
        source = (position.to(torch.float32) * self.scale[axis]).floor().to(torch.int64)
        return source.clamp(max=self.in_grid[axis] - 1).unsqueeze(1)

    def read(self, sites: Tensor) -> Tensor:
        y, x = _rows_columns(sites, self.out_grid)
        return _combine(self._axis(y, 0), self._axis(x, 1), self.in_grid)


class Bilinear(NamedTuple):
    """Bilinear resize: four taps a site; :meth:`weights` gives their shares."""

    in_grid: Pair
    out_grid: Pair
    scale: tuple[float, float]
    align_corners: bool

    def _axis(self, position: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        at = position.to(torch.float64)
        # A tensor: exporters to ONNX round numbers to float32.
        scale = torch.tensor(self.scale[axis], dtype=torch.float64)
        at = at * scale if self.align_corners else ((at + 0.5) * scale - 0.5).clamp(min=0)
        low = at.floor().to(torch.int64).clamp(max=self.in_grid[axis] - 1)
        high = (low + 1).clamp(max=self.in_grid[axis] - 1)
        share = (at - low).clamp(0, 1)
        return torch.stack([low, high], 1), torch.stack([1 - share, share], 1)

    def read(self, sites: Tensor) -> Tensor:
        y, x = _rows_columns(sites, self.out_grid)
        return _combine(self._axis(y, 0)[0], self._axis(x, 1)[0], self.in_grid)

    def weights(self, sites: Tensor) -> Tensor:
        """float64 [S, 4], in the order of :meth:`read`."""
        y, x = _rows_columns(sites, self.out_grid)
        down, across = self._axis(y, 0)[1], self._axis(x, 1)[1]
        return (down.unsqueeze(2) * across.unsqueeze(1)).flatten(1)


class Pad(NamedTuple):
    """Spatial padding by ``(top, left)``; ``mode`` as in :func:`torch.nn.functional.pad`."""

    in_grid: Pair
    out_grid: Pair
    before: Pair
    mode: str

    def _axis(self, position: Tensor, axis: int) -> Tensor:
        at, size = position - self.before[axis], self.in_grid[axis]
        if self.mode == "reflect":
            at = (size - 1) - (at.abs() - (size - 1)).abs()
        elif self.mode == "replicate":
            at = at.clamp(0, size - 1)
        elif self.mode == "circular":
            at = at.remainder(size)
        return at.unsqueeze(1)

    def read(self, sites: Tensor) -> Tensor:
        y, x = _rows_columns(sites, self.out_grid)
        return _combine_checked(self._axis(y, 0), self._axis(x, 1), self.in_grid)


class Same(NamedTuple):
    """Every site reads itself: used to move a value between two masks of one grid."""

    in_grid: Pair

    @property
    def out_grid(self) -> Pair:
        return self.in_grid

    def read(self, sites: Tensor) -> Tensor:
        return sites.unsqueeze(1)


def all_sites(grid: Pair) -> Tensor:
    """int64 [H*W]: every site of ``grid``."""
    return torch.arange(grid[0] * grid[1])


def grow(mask: Tensor, geometry: Geometry) -> Tensor:
    """Output sites (bool [H', W']) of which some tap reads an active input site."""
    if isinstance(geometry, Window):
        return _grow_window(mask, geometry)
    reads = geometry.read(all_sites(geometry.out_grid))
    hit = mask.flatten()[reads.clamp(min=0)] & (reads != OUTSIDE)
    return hit.any(1).view(geometry.out_grid)


def _grow_window(mask: Tensor, window: Window) -> Tensor:
    """The same by max-pooling, which costs far less than a table of all sites."""
    (top, left), ends = window.padding, []
    for axis in (0, 1):
        span = (window.kernel[axis] - 1) * window.dilation[axis] + 1
        reach = (window.out_grid[axis] - 1) * window.stride[axis] + span
        ends.append(reach - window.padding[axis] - window.in_grid[axis])
    padded = F.pad(mask.to(torch.float32), (left, ends[1], top, ends[0]))
    pooled = F.max_pool2d(
        padded[None, None], window.kernel, window.stride, dilation=window.dilation
    )
    return pooled[0, 0] > 0
