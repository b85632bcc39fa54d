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


def reads_own(window: Window | tuple[Pair, ...]) -> bool:
    """Does each site read itself alone? ``window`` has the fields of a :class:`Window`."""
    in_grid, out_grid, kernel, stride, padding, _ = window
    return in_grid == out_grid and (*kernel, *stride, *padding) == (1, 1, 1, 1, 0, 0)


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
    """Nearest-neighbour resize: ``floor((o + centre) * scale)`` in float32, as in torch."""

    in_grid: Pair
    out_grid: Pair
    scale: tuple[float, float]
    centre: float = 0.0

    def taps(self, position: Tensor, axis: int) -> Tensor:
        source = (
            ((position.to(torch.float32) + self.centre) * self.scale[axis]).floor().to(torch.int64)
        )
        return source.clamp(max=self.in_grid[axis] - 1).unsqueeze(1)


class Resize(NamedTuple):
    """Resize by sums of rows and columns; :meth:`weights` gives their shares.

    ``kind``: bilinear, bicubic, both also antialiased, or the average of all that a site covers.
    """

    in_grid: Pair
    out_grid: Pair
    scale: tuple[float, float]
    kind: str
    align_corners: bool = False

    def taps(self, position: Tensor, axis: int) -> Tensor:
        return self._read(position, axis)[0]

    def weights(self, sites: Tensor) -> Tensor:
        """float64 [S, taps], in the order of :func:`read`."""
        y, x = _rows_columns(sites, self.out_grid)
        down, across = self._read(y, 0)[1], self._read(x, 1)[1]
        return (down.unsqueeze(2) * across.unsqueeze(1)).flatten(1)

    def _read(self, position: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """Taps [n, taps] and their shares, float64."""
        if self.kind == "average":
            return self._average(position, axis)
        # A tensor: exporters to ONNX round numbers to float32.
        scale = torch.tensor(self.scale[axis], dtype=torch.float64, device="cpu")
        at, size = position.to(torch.float64), self.in_grid[axis]
        if self.kind.endswith("antialiased"):
            return self._antialiased((at + 0.5) * scale, axis, scale)
        at = at * scale if self.align_corners else (at + 0.5) * scale - 0.5
        if self.kind == "bilinear":
            at = at.clamp(min=0)
            share = (at - at.floor().clamp(max=size - 1)).clamp(0, 1)
            taps, shares = _steps(2, 1), torch.stack([1 - share, share], 1)
        else:
            taps = _steps(4, 1) - 1
            shares = _cubic(taps - (at - at.floor()).unsqueeze(1), -0.75)
        return (at.floor().to(torch.int64).unsqueeze(1) + taps).clamp(0, size - 1), shares

    def _average(self, position: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        size, out = self.in_grid[axis], self.out_grid[axis]
        first = (position * size).div(out, rounding_mode="floor").unsqueeze(1)
        count = -(-(position + 1) * size).div(out, rounding_mode="floor").unsqueeze(1) - first
        steps = _steps(size // out + 2, 1)
        inside = steps < count
        return torch.where(inside, first + steps, OUTSIDE), inside / count.to(torch.float64)

    def _antialiased(self, centre: Tensor, axis: int, scale: Tensor) -> tuple[Tensor, Tensor]:
        cubic, widths = self.kind.startswith("bicubic"), max(self.scale[axis], 1.0)
        reach = (2 if cubic else 1) * scale.clamp(min=1)
        first = (centre - reach + 0.5).to(torch.int64).clamp(min=0).unsqueeze(1)
        stop = (centre + reach + 0.5).to(torch.int64).clamp(max=self.in_grid[axis])
        at = first + _steps(int(2 * (2 if cubic else 1) * widths) + 2, 1)
        away = (at - centre.unsqueeze(1) + 0.5) / scale.clamp(min=1)
        shares = _cubic(away, -0.5) if cubic else (1 - away.abs()).clamp(min=0)
        inside = at < stop.unsqueeze(1)
        shares = torch.where(inside, shares, 0.0)
        return torch.where(inside, at, OUTSIDE), shares / shares.sum(1, keepdim=True)


def _cubic(away: Tensor, a: float) -> Tensor:
    """Keys' kernel."""
    x = away.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x <= 1, near, torch.where(x < 2, far, 0.0))


class Pad(NamedTuple):
    """Rows and columns in other places: padded by ``(top, left)``, less than nothing to crop.

    ``mode`` as in :func:`torch.nn.functional.pad`; circular in a grid of the same size is a roll.
    A ``step`` of -1 counts backwards (flip), a larger one takes every so many.
    """

    in_grid: Pair
    out_grid: Pair
    before: Pair
    mode: str = "constant"
    step: Pair = (1, 1)

    def taps(self, position: Tensor, axis: int) -> Tensor:
        at, size = position * self.step[axis] - self.before[axis], self.in_grid[axis]
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
    for axis, size in enumerate(geometry.in_grid):
        out = torch.arange(geometry.out_grid[axis], device="cpu")
        at = geometry.taps(out, axis)
        at = at.masked_fill((at < 0) | (at >= size), OUTSIDE)
        if isinstance(geometry, TransposedWindow):  # between its taps: as the site there
            near = (out * size).div(geometry.out_grid[axis], rounding_mode="floor")
            at[:, 0] = torch.where((at == OUTSIDE).all(1), near, at[:, 0])
        mask = _any_of(mask, at, axis - 2)
    return mask


def _any_of(mask: Tensor, at: Tensor, axis: int) -> Tensor:
    """Along ``axis`` the union of those ``at`` [n, taps]."""
    taken = mask.index_select(axis, at.clamp(min=0).flatten()).unflatten(axis, at.shape)
    inside = (at != OUTSIDE).view(*at.shape, *[1] * (-1 - axis))
    found: Tensor = (taken & inside).any(axis)
    return found


def moved(mask: Tensor, rows: tuple[int, ...], columns: tuple[int, ...]) -> Tensor:
    """These rows and columns of a mask, nothing for those that are OUTSIDE."""
    for axis, at in ((-2, rows), (-1, columns)):
        mask = _any_of(mask, torch.tensor(at, device="cpu").unsqueeze(1), axis)
    return mask


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
