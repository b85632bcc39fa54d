"""Convolution on active sites with what follows it, as one operator.

``sparsify::gather_conv`` reads active sites from the packed input and the others from the
baseline, in place; on CUDA it is a Triton kernel (:mod:`.kernels.gather_conv`), elsewhere the
reference below.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from .operators import KERNEL_DTYPES, declare
from .ops import overlay_halo

Activation = Literal["none", "relu", "leaky_relu", "silu"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


def gather_conv(
    x: Tensor,
    halo: Tensor | None,
    halo_sites: Tensor | None,
    kernel_map: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None = None,
    activation: str = "none",
    slope: float = 0.0,
    scale: float = 1.0,
    residual: Tensor | None = None,
) -> Tensor:
    """``activation(conv(x) + bias + shift) * scale + residual`` at ``S_out`` sites.

    x [N, C, S] at the active sites; halo [N, C, S_halo], or with ``halo_sites`` [S_halo] the
    baseline [N, C, L] that has a value for each site; kernel_map int64 [S_out, taps] indexes
    ``[x | halo | zero]``; weight [groups, taps * C / groups, C_out / groups], taps slowest;
    bias [C_out]; shift [N, C_out, 1]; residual [N, C_out, S_out]. Returns [N, C_out, S_out],
    stored site-major.
    """
    first, second, last = (t if t is None else t.transpose(1, 2) for t in (x, halo, residual))
    operands = (first, second, halo_sites, kernel_map, weight, bias)
    shift = None if shift is None else shift.squeeze(2)
    rows = torch.ops.sparsify.gather_conv(*operands, shift, activation, slope, scale, last)
    out: Tensor = rows.transpose(1, 2)
    return out


def reference(
    x: Tensor,
    halo: Tensor | None,
    halo_sites: Tensor | None,
    kernel_map: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    shift: Tensor | None,
    activation: str,
    slope: float,
    scale: float,
    residual: Tensor | None,
) -> Tensor:
    """:func:`gather_conv` in plain torch, on rows: x [N, S, C], halo [N, ..., C], shift
    [N, C_out], residual [N, S_out, C_out] -> [N, S_out, C_out]."""
    if halo is not None and halo_sites is not None:
        halo = halo.index_select(1, halo_sites)
    rows = overlay_halo(x.mT, None if halo is None else halo.mT, 0.0)
    y: Tensor = torch.ops.sparsify.gather_matmul(rows, kernel_map, weight, bias)
    y = activated(y if shift is None else y + shift.unsqueeze(1), activation, slope) * scale
    return y if residual is None else y + residual


def activated(x: Tensor, activation: str, slope: float) -> Tensor:
    """One of :data:`ACTIVATIONS`; ``slope`` is that of leaky_relu below zero."""
    if activation == "relu":
        return F.relu(x)
    if activation == "leaky_relu":
        return F.leaky_relu(x, slope)
    return F.silu(x) if activation == "silu" else x


def _on_cuda(x: Tensor, *args: object) -> Tensor:
    if x.dtype not in KERNEL_DTYPES:
        return reference(x, *args)  # type: ignore[arg-type]
    from .kernels.gather_conv import launch

    return launch(x, *args)  # type: ignore[arg-type]


def _fake(
    x: Tensor,
    halo: Tensor | None,
    halo_sites: Tensor | None,
    kernel_map: Tensor,
    weight: Tensor,
    *epilogue: object,
) -> Tensor:
    width = weight.shape[0] * weight.shape[2]
    return x.new_empty((x.shape[0], kernel_map.shape[0], width))


_SCHEMA = (
    "(Tensor x, Tensor? halo, Tensor? halo_sites, Tensor kernel_map, Tensor weight, Tensor? bias, "
    "Tensor? shift, str activation, float slope, float scale, Tensor? residual) -> Tensor"
)
# Rows in one piece, whatever wrote them: inductor then lets the operator before write them so.
_TAGS = (torch.Tag.needs_contiguous_strides,)
declare("gather_conv", _SCHEMA, reference, _fake, _on_cuda, _TAGS)
