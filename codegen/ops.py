"""The vocabulary of update graphs: plain tensor functions on packed values.

Packed image values are [N, C, S], stored site-major (strides of a [N, S, C] tensor), so that a
gather copies whole rows. *Rows* are [N, S, C] tensors. All functions are pure.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .by_item import at_items, sum_by_item
from .geometry import Pair
from .operators import declare, exporting

_BLOCK_BYTES = 1 << 20


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
    return x.reshape(factors).permute(order).reshape(shape)


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


def gather_blend(x: Tensor, halo: Tensor | None, kernel_map: Tensor, weights: Tensor) -> Tensor:
    """Sum of the taps weighted by ``weights`` [S_out, taps]: bilinear resize."""
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


def as_complex(x: Tensor) -> Tensor:
    """[..., 2] -> complex [...]; the two parts need not stand side by side in memory."""
    return torch.view_as_complex(x.contiguous())


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


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """``scaled_dot_product_attention`` of packed queries [..., S, d]; S is never 0."""
    if query.is_cuda and not exporting():
        out: Tensor = torch.ops.sparsify.attention(query, key, value, attn_mask, *args, **kwargs)
        return out
    torch._check(query.size(-2) > 0)
    if attn_mask is not None and attn_mask.size(-2) == 1:  # inductor asks whether S is 1 too
        attn_mask = attn_mask.expand(*attn_mask.shape[:-2], query.size(-2), key.size(-2))
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, attn_mask, *args, **kwargs)


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The library's, stored sites before heads, as most of its kernels do."""
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, *args, **kwargs)
    return out.transpose(1, -2).contiguous().transpose(1, -2)


def _attention_fake(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    shape = [*query.shape[:-1], value.shape[-1]]
    shape[1], shape[-2] = shape[-2], shape[1]
    return query.new_empty(shape).transpose(1, -2)


# Opaque on CUDA: which kernel the library takes in half precision hangs on whether S is 1.
_ATTENTION = (
    "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, "
    "bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor"
)
declare("attention", _ATTENTION, _attention, _attention_fake)


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
    """The same, computed once. Inductor's C++ would compute them anew for each site, and what
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


def repeated(sites: Tensor) -> Tensor:
    """bool [S]: is an entry of ascending ``sites`` the one before it again?"""
    number = torch.arange(len(sites), device=sites.device)
    before = sites.index_select(0, (number - 1).clamp(min=0))  # torch 2.11 compiles no sites[:-1]
    return (sites == before) & (number > 0)


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
