"""Norms of maps and of packed values, as plain tensor functions (:mod:`.ops`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from .by_item import at_items, sum_by_item
from .operators import exporting
from .ops import repeated

_BLOCK_BYTES = 1 << 20


def rms_norm(
    x: Tensor, shape: list[int], weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """``rms_norm`` as torch computes it; its own asks whether there is a single site."""
    half = x.dtype in (torch.float16, torch.bfloat16)
    wide = x.to(torch.float32) if half else x
    eps = torch.finfo(wide.dtype).eps if eps is None else eps
    squares = wide.square().mean(list(range(-len(shape), 0)), True)
    normed = wide * torch.rsqrt(squares + eps)
    return (normed if weight is None else normed * weight.to(wide.dtype)).to(x.dtype)


def group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Group norm of [N, C, *] -> (result, mean [N, G], rstd [N, G]).

    The library's takes statistics in half precision from half inputs, sums of squares of maps
    in channels-last order, and folds the mean into the bias: values far from zero lose their
    digits. Statistics are float32 at least here, and squares are of deviations.
    """
    if not _is_channels_last(x):
        x = x.contiguous()
    wide, channels = torch.promote_types(x.dtype, torch.float32), x.shape[1]
    count = channels // groups * x.shape[2:].numel()
    shape = (-1, channels, *[1] * (x.dim() - 2))

    def averaged(sums: Tensor) -> Tensor:
        average: Tensor = sums.unflatten(1, (groups, -1)).sum(2) / count
        return average

    mean = averaged(x.flatten(2).sum(2, dtype=wide))
    around = _per_channel(mean, channels).view(shape)
    squares = ((part - around).square().flatten(2).sum(2) for part in _blocks(x))
    rstd = (averaged(functools.reduce(torch.add, squares)) + eps).rsqrt()
    scale = _per_channel(rstd, channels)
    scale = (scale if weight is None else scale * weight).view(shape)
    shift = None if bias is None else bias.view(shape)
    return _normalised(x, around, scale, shift), mean, rstd


def _normalised(x: Tensor, around: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
    """(x - around) * scale + shift, in the dtype of x."""
    parts = _blocks(x)
    if len(parts) == 1:
        y: Tensor = (x - around) * scale
        y = y if shift is None else y + shift
        return y.to(x.dtype)
    out = torch.empty_like(x)
    for part, into in zip(parts, _blocks(out), strict=True):
        y = (part - around).mul_(scale)
        into.copy_(y if shift is None else y.add_(shift))
    return out


def _blocks(x: Tensor) -> Sequence[Tensor]:
    """A map in parts that stay in a CPU's cache from one operator to the next (33 MB, 2 cores:
    group norm 47 ms, as the library's, where one after the other takes 76 to 119)."""
    is_traced = torch.compiler.is_compiling() or exporting()
    if x.device.type != "cpu" or is_traced or torch.is_grad_enabled():
        return (x,)
    parts: Sequence[Tensor] = x.split(max(1, _BLOCK_BYTES * x.shape[2] // max(1, x.nbytes)), 2)
    return parts


def _is_channels_last(x: Tensor) -> bool:
    """Is it a map that a CPU's operators take in this order, and keep in it?"""
    if x.dim() != 4 or x.device.type != "cpu" or exporting():
        return False
    _, channels, height, width = x.shape
    row = width * channels
    # The norm asks for these very strides, also along axes of one element.
    return x.stride() == (height * row, 1, row, channels)


def _per_channel(statistic: Tensor, channels: int) -> Tensor:
    """Per-group [N, G] -> per-channel [N, C]."""
    return statistic.repeat_interleave(channels // statistic.shape[1], 1)


def _realised(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same, computed once. Inductor's C++ would compute them again for each site, and what
    depends on the channel's group one number at a time; what it joins, it writes out first
    (norms with silu and their halo, 60 to 4600 sites, 2 cores: 1.2 to 1.9 times as fast)."""
    one, two = torch.cat([first, second], 1).chunk(2, 1)
    return one, two


def updated_statistics(
    x: Tensor,
    old: Tensor,
    mean: Tensor,
    rstd: Tensor,
    size: int,
    eps: float,
    sites: Tensor | None = None,
    items: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Group statistics of the whole map after the values ``old`` [N, C, ..., S] became ``x``.

    mean and rstd [N, G] are the baseline's, over C/G * ``size`` values each. Deviations are
    taken from the baseline mean, so an unchanged input gives the baseline's statistics back
    without cancellation. ``sites`` [S] are those of a padded table: repetitions do not count.
    ``items`` [S] says whose site each is; statistics are then [items * N, G].
    """
    groups = mean.shape[1]
    count = x.shape[1] // groups * size
    x, old = x.to(mean.dtype), old.to(mean.dtype)
    change = x - old
    if sites is not None:
        change = torch.where(repeated(sites), 0, change)
    around, _ = _realised(*(_per_channel(statistic, x.shape[1]) for statistic in (mean, rstd)))
    around = at_items(around, items, x).movedim(-1, 1)
    pull = (x - around) + (old - around)

    def averaged(part: Tensor) -> Tensor:
        if items is None:
            sums = part.flatten(2).sum(2)
        else:
            sums = sum_by_item(part, items, len(mean) // len(x))
        average: Tensor = sums.unflatten(1, (groups, -1)).sum(2) / count
        return average

    first, second = averaged(change), averaged(change * pull)
    variance = (rstd.pow(-2) + second - first * first).clamp(min=eps)
    return mean + first, variance.rsqrt()


def group_affine(
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    items: Tensor | None = None,
) -> Tensor:
    """Group norm of packed [N, C, ..., S] with given statistics [N, G], or [items * N, G] where
    ``items`` [S] says whose site each is.

    Channels last, as values lie in memory: inductor would write gathered ones in another order.
    """
    channels = x.shape[1]
    scale = _per_channel(rstd, channels)
    if weight is not None:
        scale = scale * weight
    parts = _realised(_per_channel(mean, channels), scale)
    around, scale = (at_items(part, items, x) for part in parts)
    y = (x.movedim(1, -1) - around) * scale
    return (y if bias is None else y + bias).to(x.dtype).movedim(-1, 1)
