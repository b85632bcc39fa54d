"""``sparsify::gather_matmul`` in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor


def reference(rows: Tensor, kernel_map: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows [N, R, C] -> [N, S_out, C_out]."""
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
