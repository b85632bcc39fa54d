"""Matrix products of packed values, on weights that are arranged once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .gather_matmul import cpp
from .gather_matmul.reference import reference
from .operators import declare, exporting
from .ops import overlay_halo


def linear_weight(weight: Tensor, few_rows: bool) -> Tensor:
    """Linear or 1x1 convolution weight [C_out, C_in, 1...] for :func:`linear`."""
    matrix = weight.flatten(1)
    return _panels(matrix.t(), matrix) if few_rows else matrix


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x @ weight.T + bias`` for rows x [..., C_in] and a weight from :func:`linear_weight`.

    Opaque to inductor on CPUs, as :func:`.opaque.matmul` is.
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
    return cpp.launch(rows, None, weight, bias).view(*x.shape[:-1], -1)


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    width = weight.shape[0] if weight.dim() == 2 else len(weight) // x.shape[-1]
    return x.new_empty((*x.shape[:-1], width))


declare("linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor", _linear, _linear_fake)


def in_panels(x: Tensor) -> bool:
    """Are constant weights like ``x`` arranged for our CPU kernel?"""
    return x.device.type == "cpu" and x.dtype == torch.float32


def _panels(matrix: Tensor, plain: Tensor) -> Tensor:
    """``matrix`` [depth, width] as our CPU kernel wants it, or ``plain`` where it is not used."""
    order = cpp.panels(matrix) if in_panels(matrix) and not exporting() else None
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
    product: Any = reference if exporting() else torch.ops.sparsify.gather_matmul
    out: Tensor = product(rows, kernel_map, weight, bias)
    return out.transpose(1, 2)
