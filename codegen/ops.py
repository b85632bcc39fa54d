"""The vocabulary of update graphs: plain tensor functions on packed values.

Packed image values are [N, C, S], stored site-major (strides of a [N, S, C] tensor), so that a
gather copies whole rows. *Rows* are [N, S, C] tensors. All functions are pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .geometry import Pair
from .operators import exporting


def to_rows(x: Tensor) -> Tensor:
    """Image [N, C, H, W] -> contiguous rows [N, H*W, C]."""
    return x.flatten(2).transpose(1, 2).contiguous()


def from_rows(rows: Tensor, height: int, width: int) -> Tensor:
    """Rows [N, H*W, C] -> image [N, C, H, W] (a view)."""
    image: Tensor = rows.transpose(1, 2).unflatten(2, (height, width))
    return image


def take_rows(rows: Tensor, sites: Tensor) -> Tensor:
    """Rows [N, L, C] at sites [S] -> packed [N, C, S]."""
    return rows.index_select(1, sites).transpose(1, 2)


def take(x: Tensor, sites: Tensor, dim: int) -> Tensor:
    """Tensor with all sites on axis ``dim`` -> its packed values at ``sites`` [S]."""
    return x.index_select(dim, sites)


def overlay_rows(rows: Tensor, packed: Tensor, sites: Tensor) -> Tensor:
    """Rows [N, L, C] with the rows at ``sites`` replaced by packed [N, C, S]."""
    return rows.index_copy(1, sites, packed.transpose(1, 2))


def overlay(base: Tensor, packed: Tensor, sites: Tensor, dim: int) -> Tensor:
    """``base`` with its entries at ``sites`` along ``dim`` replaced by ``packed``."""
    return base.index_copy(dim, sites, packed)


def overlay_image(base: Tensor, packed: Tensor, sites: Tensor) -> Tensor:
    """Image [N, C, H, W] with the pixels at ``sites`` replaced by packed [N, C, S]."""
    return base.flatten(2).index_copy(2, sites, packed).view(base.shape)


def same(x: Tensor) -> Tensor:
    """x; stands for a second value that is the same one at first."""
    return x


def regroup(
    x: Tensor, factors: Sequence[int], order: Sequence[int], shape: Sequence[int]
) -> Tensor:
    """x with its axes split into ``factors``, these in another ``order``, then joined to a
    ``shape``."""
    split: Tensor = x.reshape(factors)
    return split.permute(*order).reshape(shape)


def truth(like: Tensor, value: bool) -> Tensor:
    """``value`` on the device of ``like``."""
    return torch.full((), value, dtype=torch.bool, device=like.device)


def of_one_run(is_one_run: Tensor, made: Tensor, kept: Tensor) -> Tensor:
    """A recorded value: recomputed while all sites are of one run, and else what was kept of it."""
    return torch.where(is_one_run, made, kept)


def every_site(count: int, device: torch.device) -> Tensor:
    """The positions of an axis of ``count`` sites."""
    return torch.arange(count, device=device)


def realign(x: Tensor, halo: Tensor, kernel_map: Tensor, dim: int) -> Tensor:
    """Packed values moved to other sites of the same grid, the missing ones from ``halo``."""
    return torch.cat([x, halo], dim).index_select(dim, kernel_map[:, 0])


def unpack(x: Tensor, height: int, width: int) -> Tensor:
    """Packed with all sites [N, C, H*W] -> image [N, C, H, W]; with those of several items,
    [N, C, items * H*W] -> [items * N, C, H, W]."""
    image: Tensor
    if x.shape[2] == height * width:
        image = x.unflatten(2, (height, width))
    else:
        image = x.unflatten(2, (-1, height, width)).movedim(2, 0).flatten(0, 1)
    return image


def concat_channels(parts: list[Tensor]) -> Tensor:
    """Joins packed [N, C_i, S] along channels and keeps them site-major."""
    return torch.cat([part.transpose(1, 2) for part in parts], 2).transpose(1, 2)


def same_sites(table: Tensor, sites: Tensor) -> Tensor:
    """``table`` [S, ...], with its first size declared equal to that of ``sites``."""
    torch._check(table.size(0) == sites.size(0))
    return table


def grid_sample(image: Tensor, at: Tensor, *how: Any) -> Tensor:
    """Image [N, C, H, W] at points [N, S, 2] -> packed [N, C, S]; ``how`` as torch's
    ``grid_sampler`` takes it."""
    return torch.grid_sampler(image, at.unsqueeze(1), *how).squeeze(2)


def gather(x: Tensor, halo: Tensor | None, kernel_map: Tensor, padding: float = 0.0) -> Tensor:
    """Packed [N, C, S] and halo [N, C, S_halo] -> gathered rows [N, S_out, taps, C]."""
    rows = overlay_halo(x, halo, padding)
    taken = rows.index_select(1, kernel_map.reshape(-1))
    return taken.view(x.shape[0], kernel_map.shape[0], kernel_map.shape[1], x.shape[1])


def overlay_halo(x: Tensor, halo: Tensor | None, padding: float) -> Tensor:
    """Rows ``[active | halo | padding]`` that a kernel map indexes, [N, S + S_halo + 1, C]."""
    if halo is None:  # all sites are present: a placeholder stands for the empty halo
        halo = x.new_zeros((x.shape[0], x.shape[1], 1))
    zero = x.new_full((x.shape[0], 1, x.shape[1]), padding)
    return torch.cat([x.transpose(1, 2), halo.transpose(1, 2), zero], 1)


def gather_one(x: Tensor, halo: Tensor | None, kernel_map: Tensor, padding: float = 0.0) -> Tensor:
    """Packed [N, C, S] -> packed [N, C, S_out], where each output site reads one input site."""
    return gather(x, halo, kernel_map, padding)[:, :, 0].transpose(1, 2)


def gather_joined(
    parts: list[Tensor], halos: list[Tensor | None], kernel_maps: list[Tensor]
) -> Tensor:
    """Packed [N, C, S_out], of which each site reads a site of the one part that covers it."""
    rows = [overlay_halo(x, halo, 0.0) for x, halo in zip(parts, halos, strict=True)]
    at, start = kernel_maps[0][:, 0], 0
    for own, kernel_map in zip(rows, kernel_maps, strict=True):
        column, last = kernel_map[:, 0], own.shape[1] - 1
        at = torch.where(column < last, column + start, at)
        start += own.shape[1]
    return torch.cat(rows, 1).index_select(1, at).transpose(1, 2)


def through(kernel_map: Tensor, moves: Tensor, x: Tensor, halo_sites: Tensor) -> Tensor:
    """A kernel map over rows that a gather moved, as one over the rows that it moved.

    ``kernel_map`` indexes ``[moved | halo | zero]``, where row ``i`` of the first is row
    ``moves[i, 0]`` of ``[x | halo of the gather]``; the result ``[x | both halos | zero]``.
    """
    moved, rows = moves.shape[0], x.shape[2] + halo_sites.shape[0]
    sources = moves[:, 0].index_select(0, kernel_map.clamp(max=moved - 1).flatten())
    behind = kernel_map - moved + rows
    return torch.where(kernel_map < moved, sources.view(kernel_map.shape), behind)


def gather_mean(
    x: Tensor, halo: Tensor | None, kernel_map: Tensor, divisor: Tensor | int
) -> Tensor:
    """Average pool: sum of the taps over ``divisor``, one for all or [S_out, 1]."""
    own = divisor.to(x.dtype) if isinstance(divisor, Tensor) else divisor
    return (gather(x, halo, kernel_map).sum(2) / own).transpose(1, 2)


def gather_max(x: Tensor, halo: Tensor | None, kernel_map: Tensor) -> Tensor:
    """Max pool over the taps; padding never wins."""
    return gather(x, halo, kernel_map, float("-inf")).amax(2).transpose(1, 2)


def gather_argmax(x: Tensor, halo: Tensor | None, kernel_map: Tensor, sites: Tensor) -> Tensor:
    """Which of the taps' ``sites`` [S_out, taps] has the maximum."""
    best = gather(x, halo, kernel_map, float("-inf")).argmax(2)
    return sites.expand(x.shape[0], *sites.shape).gather(2, best).transpose(1, 2)


Taps = tuple[Tensor, Tensor | None, Tensor]
"""Packed values, halo and kernel map."""


def gather_unpool(values: Taps, indices: Taps, sites: Tensor) -> Tensor:
    """Max unpool: each of ``sites`` [S_out] takes the value whose index it is, else zero.

    ``values`` and ``indices`` are operands of :func:`gather`.
    """
    wanted = sites.view(1, -1, 1, 1) == gather(*indices, -1)
    return torch.where(wanted, gather(*values), 0.0).sum(2).transpose(1, 2)


def gather_blend(x: Tensor, halo: Tensor | None, kernel_map: Tensor, weights: Tensor) -> Tensor:
    """Sum of the taps weighted by ``weights`` [S_out, taps]: resizes."""
    taps = gather(x, halo, kernel_map)
    return (taps * weights.to(x.dtype).unsqueeze(2)).sum(2).transpose(1, 2)


def gather_unshuffle(x: Tensor, halo: Tensor | None, kernel_map: Tensor) -> Tensor:
    """Pixel unshuffle: the taps become channels, channel-major."""
    return gather(x, halo, kernel_map).transpose(2, 3).flatten(2).transpose(1, 2)


def unshuffle(image: Tensor, high: int, wide: int) -> Tensor:
    """[N, C, high*H, wide*W] -> [N, C*high*wide, H, W]; ``pixel_unshuffle`` of any block."""
    parts = image.unflatten(3, (-1, wide)).unflatten(2, (-1, high))
    coarse: Tensor = parts.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)
    return coarse


def shuffle(image: Tensor, high: int, wide: int) -> Tensor:
    """[N, C*high*wide, H, W] -> [N, C, high*H, wide*W]; ``pixel_shuffle`` of any block."""
    parts = image.unflatten(1, (-1, high, wide)).permute(0, 1, 4, 2, 5, 3)
    fine: Tensor = parts.flatten(4, 5).flatten(2, 3)
    return fine


def gather_shuffle(
    x: Tensor, halo: Tensor | None, kernel_map: Tensor, phase: Tensor, phases: int
) -> Tensor:
    """Pixel shuffle: site ``s`` takes sub-pixel ``phase[s]`` of each group of channels."""
    rows = gather(x, halo, kernel_map)[:, :, 0].unflatten(2, (-1, phases))
    index = phase.view(1, -1, 1, 1).expand(rows.shape[0], -1, rows.shape[2], 1)
    chosen: Tensor = rows.gather(3, index)
    return chosen[..., 0].transpose(1, 2)


def adaptive_max_pool(image: Tensor, size: list[int]) -> Tensor:
    """The maxima alone."""
    return torch.nn.functional.adaptive_max_pool2d(image, size)


def max_pool_indices(
    image: Tensor, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> Tensor:
    """The sites of the maxima alone."""
    pooled = torch.nn.functional.max_pool2d_with_indices(image, kernel, stride, padding, dilation)
    indices: Tensor = pooled[1]
    return indices


def cut_images(
    x: Tensor, dim: int, around: tuple[int, int, int], images: Pair, ends: Pair
) -> Tensor:
    """Of an axis of (``outer`` images, ``before`` and ``after`` others), packed, some images.

    Also the others from ``ends[0]`` on before them, and the first ``ends[1]`` after them.
    """
    outer, before, after = around
    sites = x.narrow(dim, before, x.size(dim) - before - after).unflatten(dim, (outer, -1))
    kept = sites.narrow(dim, images[0], images[1] - images[0]).flatten(dim, dim + 1)
    head = x.narrow(dim, ends[0], before - ends[0])
    tail = x.narrow(dim, x.size(dim) - after, ends[1])
    return torch.cat([head, kept, tail], dim)


def numbers(values: list[float], after: int, *, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``values`` along an axis with ``after`` more behind it."""
    return torch.tensor(values, dtype=dtype, device=device).view(-1, *[1] * after)


def as_complex(x: Tensor) -> Tensor:
    """[..., 2] -> complex [...]; the two parts need not stand side by side in memory."""
    return torch.view_as_complex(x.contiguous())


def view_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The same bits as another type, wherever they lie in memory."""
    return x.contiguous().view(dtype)


def contiguous(x: Tensor) -> Tensor:
    """x with the strides of a new tensor, along axes of one element too: compiled code asks."""
    whole = x.contiguous()
    return whole if exporting() else whole.view(-1).view(x.shape)


def as_strided(
    x: Tensor, order: list[int], size: list[int], stride: list[int], start: int
) -> Tensor:
    """``as_strided`` of x with its axes laid out in ``order``, wherever it lies in memory."""
    index = torch.arange(x.numel(), device=x.device).as_strided(size, stride, start)
    return x.permute(order).reshape(-1)[index]


def repeated(sites: Tensor) -> Tensor:
    """bool [S]: is an entry of ascending ``sites`` the one before it again?"""
    number = torch.arange(len(sites), device=sites.device)
    before = sites.index_select(0, (number - 1).clamp(min=0))  # torch 2.11 compiles no sites[:-1]
    return (sites == before) & (number > 0)
