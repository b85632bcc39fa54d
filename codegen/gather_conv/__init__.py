"""Convolution on active sites with what follows it, as one operator.

``sparsify::gather_conv`` reads active sites from the packed input and the others from the
baseline, in place; on CUDA it is a Triton kernel (:mod:`.triton`), elsewhere the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import KERNEL_DTYPES, declare
from .reference import reference


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


def _on_cuda(x: Tensor, *args: object) -> Tensor:
    if x.dtype not in KERNEL_DTYPES:
        return reference(x, *args)  # type: ignore[arg-type]
    from .triton import launch

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
