"""Matrix products of packed values, on prepacked weights (:mod:`.prepack`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import tables
from .gather_matmul.formats import PLAIN, named
from .gather_matmul.reference import reference
from .geometry import Pair, Window, reads_own
from .operators import declare, exporting
from .ops import overlay_halo, unpack


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, format: str) -> Tensor:
    """``x @ weight.T + bias`` for rows x [..., C_in] and a weight from ``prepack_linear``.

    Opaque to inductor on CPUs, as :func:`.opaque.matmul` is.
    """
    if format == PLAIN and (exporting() or x.is_cuda):
        return torch.nn.functional.linear(x, weight, bias)
    out: Tensor = torch.ops.sparsify.linear(x, weight, bias, format)
    return out


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, format: str) -> Tensor:
    """1x1 convolution of packed [N, C, S] with a weight from ``prepack_linear``."""
    return linear(x.transpose(1, 2), weight, bias, format=format).transpose(1, 2)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, format: str) -> Tensor:
    if format == PLAIN:
        return torch.nn.functional.linear(x, weight, bias)
    rows = x.reshape(1, -1, x.shape[-1])
    return named(format).product(rows, None, weight, bias).view(*x.shape[:-1], -1)


def _linear_fake(x: Tensor, weight: Tensor, bias: Tensor | None, format: str) -> Tensor:
    is_plain, depth = format == PLAIN, x.shape[-1]
    width = weight.shape[0] if is_plain else named(format).width(weight, depth)
    return x.new_empty((*x.shape[:-1], width))


_LINEAR = "(Tensor x, Tensor weight, Tensor? bias, str format) -> Tensor"
declare("linear", _LINEAR, _linear, _linear_fake)


def gather_conv(
    x: Tensor,
    halo: Tensor | None,
    kernel_map: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    format: str,
) -> Tensor:
    """Convolution on active sites: gather the taps, then one matrix product.

    x [N, C, S] and halo [N, C, S_halo] (None when x has every site), kernel_map [S_out, taps],
    weight from ``prepack_conv`` -> packed [N, C_out, S_out].
    """
    rows = overlay_halo(x, halo, 0.0)
    if format == PLAIN and exporting():
        return reference(rows, kernel_map, weight, bias).transpose(1, 2)
    out: Tensor = torch.ops.sparsify.gather_matmul(rows, kernel_map, weight, bias, format)
    return out.transpose(1, 2)


def whole_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, window: tuple[Pair, ...], *, format: str
) -> Tensor:
    """conv2d of a whole map [N, C, H, W] -> [N, C_out, H', W'].

    ``window`` has the fields of :class:`.Window`; the weight is from ``prepack_linear`` if it has
    one tap that reads each site, else from ``prepack_conv``.
    """
    _, out_grid, kernel, stride, padding, dilation = window
    rows = x.flatten(2)
    if reads_own(window):
        out = packed_linear(rows, weight, bias, format=format)
    elif format == PLAIN:
        taps = weight[0].unflatten(0, (*kernel, -1)).permute(3, 2, 0, 1)
        result: Tensor = torch.nn.functional.conv2d(x, taps, bias, stride, padding, dilation)
        return result
    else:
        sites = torch.ops.sparsify.window_map(*window)
        out = gather_conv(rows, None, sites, weight, bias, format=format)
    return unpack(out, *out_grid)


def _window_map(*window: Pair) -> Tensor:
    own: Any = (tuple(one) for one in window)
    sites: Tensor = tables.kernel_map(Window(*own), None, None)[0]
    return sites


def _window_map_fake(*window: Pair) -> Tensor:
    (_, (height, width), (rows, columns), *_) = window
    return torch.empty((height * width, rows * columns), dtype=torch.int64)


_GRIDS = "int[] in_grid, int[] out_grid, int[] kernel, int[] stride, int[] padding, int[] dilation"
declare("window_map", f"({_GRIDS}) -> Tensor", _window_map, _window_map_fake)
