"""Weights of which every 16 columns keep N of each M consecutive inputs (16:N:M), for the CPU
kernel: what is kept, and lists that say which inputs these are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import OperandError
from . import cpp


def pack(matrix: Tensor, n: int, m: int) -> Tensor:
    """Float32 [depth, width] -> int32 [depth * n / m * width * 17 / 16]: the bits of what is kept
    as :func:`.cpp.panels` arranges it, then which row of ``matrix`` each was, in the same order.

    16 divides the width, and ``m`` the channels of a tap. Where fewer than ``n`` of ``m`` are no
    zeros, some of these are kept. Raises :class:`OperandError` if more are: none is dropped.
    """
    depth, width = matrix.shape
    if depth % m or width % cpp.COLUMNS:
        raise OperandError(f"16:{n}:{m}: {m} has to divide {depth} inputs, and 16 {width} columns")
    is_kept = (matrix != 0).view(depth // m, m, -1, cpp.COLUMNS).any(3)
    most = int(is_kept.sum(1).max()) if is_kept.numel() else 0
    if most > n:
        raise OperandError(
            f"16:{n}:{m}: some 16 columns keep {most} of {m} inputs: mask the weight with v=16, "
            f"n={n}, m={m}, and along its inputs"
        )
    order = is_kept.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    first = order[:, :n].sort(1).values
    start = torch.arange(0, depth, m, device=matrix.device).view(-1, 1, 1)
    inputs = (first + start).flatten(0, 1)
    values = matrix.gather(0, inputs.repeat_interleave(cpp.COLUMNS, 1))
    count = cpp.panel_width() // cpp.COLUMNS
    lists = [panel.flatten() for panel in inputs.to(torch.int32).split(count, 1)]
    return torch.cat([cpp.panels(values).view(torch.int32), *lists])


def width(weight: Tensor, depth: int, n: int, m: int) -> int:
    """Columns of a packed ``weight`` of so many inputs."""
    return cpp.values_of(weight) // max(1, depth // m * n)


def launch(
    rows: Tensor, kernel_map: Tensor | None, weight: Tensor, bias: Tensor | None, n: int, m: int
) -> Tensor:
    """:func:`.cpp.launch` for a weight from :func:`pack`."""
    if weight.dtype != torch.int32 or weight.dim() != 1 or rows.dim() != 3 or rows.shape[2] % m:
        raise OperandError(
            f"gather_matmul: a weight in the format 16:{n}:{m} is int32 with one axis, for rows "
            f"[N, R, C] of which {m} divides C, not {list(weight.shape)} for {list(rows.shape)}"
        )
    kept = rows.shape[2] // m * n
    return cpp.launch(rows, kernel_map, weight.view(torch.float32), bias, kept)
