"""``sparsify::gather_conv`` in plain torch."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import overlay_halo

Activation = Literal["none", "relu", "leaky_relu", "silu"]
ACTIVATIONS: tuple[str, ...] = get_args(Activation)


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
    format: str,
) -> Tensor:
    """On rows: x [N, S, C], halo [N, ..., C], shift
    [N, C_out], residual [N, S_out, C_out] -> [N, S_out, C_out]."""
    if halo is not None and halo_sites is not None:
        halo = halo.index_select(1, halo_sites)
    rows = overlay_halo(x.mT, None if halo is None else halo.mT, 0.0)
    y: Tensor = torch.ops.sparsify.gather_matmul(rows, kernel_map, weight, bias, format)
    y = activated(y if shift is None else y + shift.unsqueeze(1), activation, slope) * scale
    return y if residual is None else y + residual


def activated(x: Tensor, activation: str, slope: float) -> Tensor:
    """One of :data:`ACTIVATIONS`; ``slope`` is that of leaky_relu below zero."""
    if activation == "relu":
        return F.relu(x)
    if activation == "leaky_relu":
        return F.leaky_relu(x, slope)
    return F.silu(x) if activation == "silu" else x
