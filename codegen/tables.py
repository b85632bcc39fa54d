"""The plan: everything that depends on the mask alone, as plain tensor functions.

Masks are bool [H, W] or, of several items, [N, H, W]; sites int64 [S], one item after the other:
``n * H*W + site``; a kernel map int64 [S_out, taps] indexes the *overlay rows*
``[active input sites | halo | one row of zeros]``. No table is ever empty: an empty mask activates
its first site, an empty halo reads site 0 and nothing refers to it.

``padded`` tables have one of few sizes, so that one CUDA graph serves many masks: the last site
is repeated. What is computed there is what that site has, so writing it twice changes nothing;
only sums over sites have to leave the repetitions out.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from . import kernel_map as native
from .geometry import (
    OUTSIDE,
    Geometry,
    Nearest,
    Pair,
    Resize,
    Window,
    all_sites,
    grow,
    moved,
    read,
    within,
)
from .operators import exporting

_LEAST_STEP = 16

__all__ = [
    "active_sites",
    "blend_weights",
    "capacity",
    "dilate",
    "grid_mask",
    "grow",
    "items_at",
    "kernel_map",
    "lanes",
    "moved",
    "own_sites",
    "pool_divisor",
    "shuffle_phase",
    "sites_within",
    "source_sites",
    "space_sites",
    "tap_sites",
    "union",
]


def dilate(mask: Tensor, pixels: int, wraps: tuple[bool, bool] = (False, False)) -> Tensor:
    """Mask [..., H, W] grown by ``pixels`` in every direction, diagonals included; around the
    border along the axes that ``wraps``.

    By shifted copies of it, each step nearly doubling how far they reach.
    """
    for axis, around in zip((-2, -1), wraps, strict=True):
        mask = _continued(mask, axis, pixels, around)
        width = 1
        while (step := min(width, 2 * pixels + 1 - width)) > 0:
            size = mask.shape[axis] - step
            mask = mask.narrow(axis, 0, size) | mask.narrow(axis, step, size)
            width += step
    return mask


def sampled(mask: Tensor, points: Tensor, mode: int, padding: int, corners: bool) -> Tensor:
    """Where ``grid_sampler`` at ``points`` [N, H', W', 2] reads an active site of bool [..., H, W]
    -> bool [..., H', W'].

    By what it gives for two pictures of unlike numbers, which no weights of a cubic cancel in both.
    Where rounding chooses the sites, as many around them count as well.
    """
    reach, is_half = int(mode == 1), points.dtype.itemsize < 4
    if is_half:
        reach += math.ceil(2 * max(mask.shape[-2:]) * torch.finfo(points.dtype).eps)
        padding = padding or 1  # what lies outside may be rounded to the border
    points = points.to(mask.device, torch.promote_types(points.dtype, torch.float32))
    each = points.shape[0] // max(1, mask[..., 0, 0].numel())
    count = torch.arange(mask.shape[-2] * mask.shape[-1], dtype=points.dtype, device=mask.device)
    numbers = torch.stack([(count + 1).sqrt(), (count + 1.5).sqrt()]).view(2, *mask.shape[-2:])
    wide = (dilate(mask, reach) if reach else mask).reshape(-1, 1, *mask.shape[-2:])
    pictures = (wide * numbers).repeat_interleave(each, 0)
    reached = (torch.grid_sampler(pictures, points, mode, padding, corners) != 0).any(1)
    return reached.view(*mask.shape[:-2], each, *points.shape[1:3]).any(-3)


def _continued(mask: Tensor, axis: int, pixels: int, around: bool) -> Tensor:
    """``pixels`` more at both ends: nothing, or those of the other end."""
    if not around:
        return F.pad(mask, (0, 0, pixels, pixels) if axis == -2 else (pixels, pixels))
    size = mask.shape[axis]
    at = torch.arange(-pixels, size + pixels, device=mask.device)
    return mask.index_select(axis, at.remainder(size))


def grid_mask(mask: Tensor, grid: Pair) -> Tensor:
    """Mask [..., H, W] carried to another ``grid``: active where any covered input site is.

    The windows are those of ``adaptive_max_pool2d``.
    """
    for axis, new in zip((-2, -1), grid, strict=True):
        if mask.shape[axis] % new == 0:
            mask = mask.unflatten(axis, (new, -1)).any(axis)
        else:
            mask = _any_of_windows(mask, axis, new)
    return mask


def _any_of_windows(mask: Tensor, axis: int, new: int) -> Tensor:
    """The same along one ``axis``, of which windows overlap: counted by running sums."""
    at, size = torch.arange(new, device=mask.device), mask.shape[axis]
    before = torch.zeros_like(mask.narrow(axis, 0, 1), dtype=torch.int32)
    counts = torch.cat([before, mask.cumsum(axis, dtype=torch.int32)], axis)
    end = counts.index_select(axis, ((at + 1) * size + new - 1) // new)
    return end > counts.index_select(axis, at * size // new)


def union(first: Tensor, *others: Tensor) -> Tensor:
    """Sites active in any of the masks."""
    for other in others:
        first = first | other
    return first


def active_sites(mask: Tensor, padded: bool = False) -> Tensor:
    """int64 [S], ascending, S >= 1."""
    flat = mask.flatten()
    first = torch.zeros_like(flat)
    first[0] = flat.to(torch.uint8).max() == 0  # `any` of so many takes ten times longer
    sites = (flat | first).nonzero()[:, 0]
    return padded_sites(sites) if padded else sites


def padded_sites(sites: Tensor) -> Tensor:
    """In the next of the padded sizes, by repetition of the last."""
    count = sites.shape[0]
    return torch.cat([sites, sites[-1:].expand(capacity(count) - count)])


def capacity(count: int) -> int:
    """The next of the padded sizes: eight an octave, so at most an eighth is repetition."""
    step = max(_LEAST_STEP, 1 << max(0, (count - 1).bit_length() - 4))
    return -(-count // step) * step


def space_sites(
    sites: Tensor, grid: Pair, outer: int, before: int, after: int, items: int = 1
) -> Tensor:
    """Positions of active ``sites`` [S] along an axis with other entries around the grid.

    The axis holds ``before`` entries, ``outer`` times the sites of ``grid``, ``after`` entries;
    returns int64 [before + outer * S + after], ascending: the others are always active. Of several
    ``items``, whose axes follow each other, each entry is that of every item, one after the other.
    """
    count = grid[0] * grid[1]
    size = before + outer * count + after
    starts = size * torch.arange(items, device=sites.device)
    if items > 1:
        inside, item = within(sites, count)
        sites = inside + size * item

    def beside(first: int, number: int) -> Tensor:
        entries = torch.arange(first, first + number, device=sites.device)
        return (entries[:, None] + starts).flatten()

    images = before + count * torch.arange(outer, device=sites.device)
    inside = (images[:, None] + sites).flatten()
    return torch.cat([beside(0, before), inside, beside(before + outer * count, after)])


def sites_within(sites: Tensor | None, count: int, items: int) -> Tensor:
    """Where in their item ``sites`` [S] of a batch are, of ``count`` an item; None: all."""
    if sites is None:
        return torch.arange(count, device="cpu").repeat(items)
    return within(sites, count)[0]


def items_at(sites: Tensor | None, count: int, items: int) -> Tensor:
    """Whose ``sites`` [S] of a batch these are, of ``count`` an item; None: all."""
    if sites is None:
        return torch.arange(items, device="cpu").repeat_interleave(count)
    return within(sites, count)[1]


def lanes(
    sites: Tensor, space: tuple[Pair, int, int, int], items: int, padded: bool = False
) -> tuple[Tensor, Tensor]:
    """The packed rows of each item, side by side.

    Rows are those of :func:`space_sites` for ``space`` (grid, outer, before, after). Returns
    int64 [most, items]: the number of the i-th row of an item, -1 where it has fewer; and int64
    [rows]: where in these, flattened, a row stands.
    """
    grid, outer, before, after = space
    size = before + outer * grid[0] * grid[1] + after
    item = within(space_sites(sites, *space, items), size)[1]
    is_own = item.unsqueeze(1) == torch.arange(items, device=sites.device)
    rank = (is_own.to(torch.int64).cumsum(0) - 1).gather(1, item.unsqueeze(1))[:, 0]
    places = rank * items + item
    rows = torch.arange(item.shape[0], device=sites.device)
    every = torch.full((item.shape[0] * items,), -1, device=sites.device).index_put((places,), rows)
    used = torch.zeros_like(rows).index_put((rank,), torch.ones_like(rank)).nonzero()[:, 0]
    table = every.view(-1, items).index_select(0, used)
    if padded:
        table = F.pad(table, (0, 0, 0, capacity(used.shape[0]) - used.shape[0]), value=-1)
    return table, places


def kernel_map(
    geometry: Geometry,
    in_sites: Tensor | None,
    out_sites: Tensor | None,
    padded: bool = False,
    items: int = 1,
) -> tuple[Tensor, Tensor]:
    """Kernel map [S_out, taps] and halo sites [S_halo] of an operator.

    ``in_sites`` / ``out_sites`` are the active sites of its input and output, None for all of
    them. With all input sites present the halo is only the placeholder. No tap reads another one
    of the ``items``.
    """
    if exporting() or not native.takes(in_sites, out_sites):
        return kernel_map_reference(geometry, in_sites, out_sites, padded, items)
    reads, halo, position = native.read_sites(geometry, in_sites, out_sites, items)
    halo = padded_sites(halo) if padded and in_sites is not None else halo
    return native.number_sites(reads, halo, position), halo


def kernel_map_reference(
    geometry: Geometry,
    in_sites: Tensor | None,
    out_sites: Tensor | None,
    padded: bool,
    items: int = 1,
) -> tuple[Tensor, Tensor]:
    """:func:`kernel_map` in plain torch."""
    reads = read(geometry, _sites(geometry, out_sites, items), items)
    count = items * geometry.in_grid[0] * geometry.in_grid[1]
    if in_sites is None:
        return torch.where(reads == OUTSIDE, count + 1, reads), reads.new_zeros(1)
    # The last entries stand for what is OUTSIDE: it indexes them from the end.
    position = reads.new_full((count + 1,), OUTSIDE)
    needed = torch.zeros_like(position, dtype=torch.bool)
    needed[reads.flatten()] = True
    needed[in_sites] = False
    halo = active_sites(needed[:count], padded)
    active = in_sites.shape[0]
    end = active + halo.shape[0]
    position[halo] = torch.arange(active, end, device=halo.device)
    position[in_sites] = torch.arange(active, device=halo.device)
    position[count] = end
    return position[reads], halo


def source_sites(geometry: Geometry, out_sites: Tensor, items: int = 1) -> Tensor:
    """The one input site [S] that each output site reads (nearest resize)."""
    return kernel_map(geometry, None, out_sites, items=items)[0][:, 0]


def _sites(geometry: Geometry, out_sites: Tensor | None, items: int = 1) -> Tensor:
    return all_sites(geometry.out_grid, items) if out_sites is None else out_sites


def blend_weights(geometry: Resize, out_sites: Tensor | None) -> Tensor:
    """Shares float64 [S_out, taps] of the taps of a resize."""
    return geometry.weights(_sites(geometry, out_sites))


def own_sites(geometry: Geometry, out_sites: Tensor | None) -> Tensor:
    """The output sites int64 [S_out] themselves."""
    return _sites(geometry, out_sites)


def tap_sites(geometry: Geometry, out_sites: Tensor | None) -> Tensor:
    """The input site int64 [S_out, taps] of each tap."""
    return read(geometry, _sites(geometry, out_sites))


def pool_divisor(geometry: Window, out_sites: Tensor | None) -> Tensor:
    """How many taps of an average pool lie inside the map, int64 [S_out, 1]."""
    inside = read(geometry, _sites(geometry, out_sites)) != OUTSIDE
    return inside.sum(1, keepdim=True)


def shuffle_phase(geometry: Nearest, out_sites: Tensor | None, block: Pair) -> Tensor:
    """Sub-pixel int64 [S_out] of each output site of a pixel shuffle of ``block`` pixels."""
    sites = _sites(geometry, out_sites)
    width = geometry.out_grid[1]
    y, x = sites.div(width, rounding_mode="floor"), sites.remainder(width)
    return y.remainder(block[0]) * block[1] + x.remainder(block[1])
