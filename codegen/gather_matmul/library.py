"""``sparsify::gather_matmul`` on CPUs by the library's products, for the weights that the C++
kernel does not take."""

from __future__ import annotations

import torch
from torch import Tensor

from .reference import reference

# One block of gathered rows should stay in the last-level cache until the product has read it.
_BLOCK_BYTES = 4 << 20
_MIN_BLOCK = 256


def product(rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """In blocks of sites, so that the gathered columns are read back from cache, not memory."""
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
    return reference(rows, kernel_map, weight, bias)
