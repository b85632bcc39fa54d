"""Convolution on active sites with what follows it, as one operator.

``sparsify::gather_conv`` reads active sites from the packed input and the others from the
baseline, in place; on CUDA it is a Triton kernel (:mod:`.triton`), elsewhere the reference.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..gather_matmul.formats import named
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
    *,
    format: str,
) -> Tensor:
    """``activation(conv(x) + bias + shift) * scale + residual`` at ``S_out`` sites.

    x [N, C, S] at the active sites; halo [N, C, S_halo], or with ``halo_sites`` [S_halo] the
    baseline [N, C, L] that has a value for each site; kernel_map int64 [S_out, taps] indexes
    ``[x | halo | zero]``; weight from ``prepack_conv``, in a format that :func:`.prepack.fuses`;
    bias [C_out]; shift [N, C_out, 1]; residual [N, C_out, S_out]. Returns [N, C_out, S_out],
    stored site-major.
    """
    first, second, last = (t if t is None else t.transpose(1, 2) for t in (x, halo, residual))
    operands = (first, second, halo_sites, kernel_map, weight, bias)
    shift = None if shift is None else shift.squeeze(2)
    epilogue = (shift, activation, slope, scale, last)
    rows = torch.ops.sparsify.gather_conv(*operands, *epilogue, format)
    out: Tensor = rows.transpose(1, 2)
    return out


def on_cuda(
    x: Tensor,
    halo: Tensor | None,
    halo_sites: Tensor | None,
    kernel_map: Tensor,
    weight: Tensor,
    *others: Any,
    **how: Any,
) -> Tensor:
    """The operator by its kernel, where that takes the dtype and the format; ``how`` it is run, see
    :func:`.triton.launch`."""
    *epilogue, format = others
    parts = named(format).parts
    if x.dtype not in KERNEL_DTYPES or parts is None:
        return reference(x, halo, halo_sites, kernel_map, weight, *others)
    from .triton import launch

    values, lists = parts(weight, kernel_map.shape[1] * x.shape[2], x.dtype)
    args: tuple[Any, ...] = (x, halo, halo_sites, kernel_map, values, *epilogue, lists)
    return launch(*args, **how)


def _fake(
    x: Tensor,
    halo: Tensor | None,
    halo_sites: Tensor | None,
    kernel_map: Tensor,
    weight: Tensor,
    *others: Any,
) -> Tensor:
    sites, taps = kernel_map.shape
    width = named(others[-1]).width(weight, taps * x.shape[2])
    return x.new_empty((x.shape[0], sites, width))


_SCHEMA = (
    "(Tensor x, Tensor? halo, Tensor? halo_sites, Tensor kernel_map, Tensor weight, Tensor? bias, "
    "Tensor? shift, str activation, float slope, float scale, Tensor? residual, str format) "
    "-> Tensor"
)
# Rows in one piece, whatever wrote them: inductor then lets the operator before write them so.
_TAGS = (torch.Tag.needs_contiguous_strides,)
declare("gather_conv", _SCHEMA, reference, _fake, on_cuda, _TAGS)
