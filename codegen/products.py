"""Matrix products of packed values, on weights that are arranged once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .kernels import gather_matmul
from .operators import declare, exporting
from .ops import overlay_halo

# One block of gathered rows should stay in the last-level cache until the product has read it.
_BLOCK_BYTES = 4 << 20
_MIN_BLOCK = 256


def matmul(first: Tensor, second: Tensor) -> Tensor:
    """``first @ second``, of which one is packed.

    Opaque to inductor, whose own lowering on CPU has to know whether there is a single site.
    """
    if exporting():
        return first @ second
    out: Tensor = torch.ops.sparsify.matmul(first, second)
    return out


declare("matmul", "(Tensor first, Tensor second) -> Tensor", torch.matmul, torch.matmul)


def cdist(rows: Tensor, codes: Tensor, *args: Any) -> Tensor:
    """``cdist`` of packed rows; opaque to inductor, which asks how many there are."""
    library: Any = torch.ops.aten if exporting() else torch.ops.sparsify
    out: Tensor = library.cdist(rows, codes, *args)
    return out


def _cdist_fake(rows: Tensor, codes: Tensor, *args: Any) -> Tensor:
    return rows.new_empty((*rows.shape[:-1], codes.shape[-2]))


_CDIST = "(Tensor x1, Tensor x2, float p=2, int? compute_mode=None) -> Tensor"
declare("cdist", _CDIST, torch.ops.aten.cdist.default, _cdist_fake)


def linear_weight(weight: Tensor, few_rows: bool) -> Tensor:
    """Linear or 1x1 convolution weight [C_out, C_in, 1...] for :func:`linear`."""
    matrix = weight.flatten(1)
    return _panels(matrix.t(), matrix) if few_rows else matrix


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` for rows x [..., C_in] and a weight from :func:`linear_weight`.

    Opaque to inductor on CPUs, as :func:`matmul` is.
    """
    if exporting() or x.is_cuda:
        return torch.nn.functional.linear(x, weight, bias)
    out: Tensor = torch.ops.sparsify.linear(x, weight, bias)
    return out


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """1x1 convolution of packed [N, C, S] with a weight from :func:`linear_weight`."""
    return linear(x.transpose(1, 2), weight, bias).transpose(1, 2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if weight.dim() == 2:
        return torch.nn.functional.linear(x, weight, bias)
    rows = x.reshape(1, -1, x.shape[-1])
    return gather_matmul.launch(rows, None, weight, bias).view(*x.shape[:-1], -1)


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    width = weight.shape[0] if weight.dim() == 2 else len(weight) // x.shape[-1]
    return x.new_empty((*x.shape[:-1], width))


declare("linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _linear, _linear_fake)


def in_panels(x: Tensor) -> bool:
    """Are constant weights like ``x`` arranged for our CPU kernel?"""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _panels(matrix: Tensor, plain: Tensor) -> Tensor:
    """``matrix`` [depth, width] as our CPU kernel wants it, or ``plain`` where it is not used."""
    order = gather_matmul.panels(matrix) if in_panels(matrix) and not exporting() else None
    return plain if order is None else order


def conv_weight(weight: Tensor, groups: int, transposed: bool, constant: bool) -> Tensor:
    """Convolution weight for :func:`gather_conv`.

    ``weight`` is [C_out, C_in/groups, kh, kw], or [C_in, C_out/groups, kh, kw] if transposed.
    Returns [groups, taps * C_in/groups, C_out/groups], taps slowest; of a ``constant`` with one
    group, where our CPU kernel computes the product, the same in panels, [taps * C_in * C_out].
    """
    split: Tensor = weight.unflatten(0, (groups, -1))  # g, co, ci, kh, kw
    if transposed:
        split = split.transpose(1, 2)
    ordered = split.permute(0, 3, 4, 2, 1)
    plain = ordered.reshape(groups, -1, ordered.shape[-1]).contiguous()
    return _panels(plain[0], plain) if constant and groups == 1 else plain


def gather_conv(
    x: Tensor, halo: Tensor | None, kernel_map: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """Convolution on active sites: gather the taps, then one matrix product.

    x [N, C, S] and halo [N, C, S_halo] (None when x has every site), kernel_map [S_out, taps],
    weight from :func:`conv_weight` -> packed [N, C_out, S_out].
    """
    rows = overlay_halo(x, halo, 0.0)
    product: Any = gather_matmul_reference if exporting() else torch.ops.sparsify.gather_matmul
    out: Tensor = product(rows, kernel_map, weight, bias)
    return out.transpose(1, 2)


def gather_matmul_reference(
    rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """``sparsify::gather_matmul`` in plain torch: rows [N, R, C] -> [N, S_out, C_out]."""
    groups, depth, width = weight.shape
    taps = kernel_map.shape[1]
    taken = rows.index_select(1, kernel_map.reshape(-1))
    if groups == 1:
        flat = taken.reshape(-1, depth)
        product = flat @ weight[0] if bias is None else torch.addmm(bias, flat, weight[0])
        return product.view(rows.shape[0], -1, width)
    grouped = taken.view(rows.shape[0], -1, taps, groups, depth // taps)
    columns = grouped.permute(0, 3, 1, 2, 4).reshape(rows.shape[0], groups, -1, depth)
    out = (columns @ weight).transpose(1, 2).reshape(rows.shape[0], -1, groups * width)
    return out if bias is None else out + bias


def _gather_matmul_cpu(
    rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    """By our kernel; else in blocks of sites, so that the gathered columns are read back from
    cache, not memory."""
    if weight.dim() == 1:
        return gather_matmul.launch(rows, kernel_map, weight, bias)
    if weight.shape[0] != 1:
        return _grouped(rows, kernel_map, weight, bias)
    if _is_narrow(rows, kernel_map, weight):
        return _narrow(rows, kernel_map, weight[0], bias)
    (batch, count, channels), (sites, taps) = rows.shape, kernel_map.shape
    index, depth = kernel_map.flatten(), taps * channels
    if batch > 1:  # one product for all items: weights are read once
        index = (index + count * torch.arange(batch, device=index.device).unsqueeze(1)).flatten()
    every, total = rows.reshape(-1, channels), batch * sites
    block = max(_MIN_BLOCK, _BLOCK_BYTES // (depth * rows.element_size()))
    if 0 < total <= block:
        taken = every.index_select(0, index).view(total, depth)
        return _product(taken, weight, bias).view(batch, sites, -1)
    out = rows.new_empty((total, weight.shape[2]))
    columns = rows.new_empty((min(block, total) * taps, channels))
    for start in range(0, total, block):
        stop = min(start + block, total)
        taken = columns[: (stop - start) * taps]
        torch.index_select(every, 0, index[start * taps : stop * taps], out=taken)
        _product(taken.view(stop - start, depth), weight, bias, out[start:stop])
    return out.view(batch, sites, -1)


def _is_narrow(rows: Tensor, kernel_map: Tensor, weight: Tensor) -> bool:
    """Fewer numbers a row for all taps than its channels, and no more rows than are read."""
    sites, taps = kernel_map.shape
    if rows.dtype not in (torch.float32, torch.float64):
        return False
    return taps * weight.shape[2] <= rows.shape[2] and rows.shape[1] <= 4 * sites


def _narrow(rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Few output channels: the product first, on every row for all taps, then the gather, which
    has that much less to move (128 to 3 channels, 4600 sites, 2 cores: 2.0 ms against 7.0)."""
    sites, taps = kernel_map.shape
    batch, count, channels = rows.shape
    by_tap = weight.view(taps, channels, -1).transpose(0, 1).flatten(1)
    parts = (rows @ by_tap).view(batch, count * taps, -1)
    index = kernel_map * taps + torch.arange(taps, device=kernel_map.device)
    out = parts.index_select(1, index.flatten()).view(batch, sites, taps, -1).sum(2)
    return out if bias is None else out + bias


def _product(
    matrix: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor | None = None
) -> Tensor:
    if bias is None:
        return torch.mm(matrix, weight[0], out=out)
    return torch.addmm(bias, matrix, weight[0], out=out)


def _grouped(rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    groups, depth, width = weight.shape
    taps = kernel_map.shape[1]
    if depth == taps and width == 1:  # depthwise: a weighted sum of taps, no product to batch
        taken = rows.index_select(1, kernel_map.reshape(-1))
        taken = taken.view(rows.shape[0], -1, taps, groups)
        out = (taken * weight[:, :, 0].t()).sum(2)
        return out if bias is None else out + bias
    return gather_matmul_reference(rows, kernel_map, weight, bias)


def _gather_matmul_fake(
    rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    (batch, _, channels), (sites, taps) = rows.shape, kernel_map.shape
    if weight.dim() == 1:
        width = len(weight) // (taps * channels)
    else:
        width = weight.shape[0] * weight.shape[2]
    return rows.new_empty((batch, sites, width))


_SCHEMA = "(Tensor rows, Tensor kernel_map, Tensor weight, Tensor? bias) -> Tensor"
_PARTS = (_gather_matmul_cpu, _gather_matmul_fake, gather_matmul_reference)
declare("gather_matmul", _SCHEMA, *_PARTS)
