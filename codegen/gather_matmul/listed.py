"""Weights of which every 16 columns keep N of each M consecutive inputs (16:N:M), for the CPU
kernel: what is kept, and lists that say which inputs these are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import OperandError
from ..nm.pattern import NM
from . import cpp


def name(kept: NM, channels: int) -> str | None:
    """The format of a weight that keeps so much of ``channels`` inputs, if it has one."""
    return None if kept.v % cpp.COLUMNS or channels % kept.m else f"16:{kept.n}:{kept.m}"


def pack(matrix: Tensor, n: int, m: int) -> Tensor:
    """Float32 [depth, width] -> int32 [depth * n / m * width * 17 / 16]: the bits of what is kept
    as :func:`.cpp.panels` arranges it, then which row of ``matrix`` each was, in the same order.

    Raises :class:`OperandError` as :func:`kept_inputs` does.
    """
    inputs = kept_inputs(matrix, cpp.COLUMNS, n, m)
    values = matrix.gather(0, inputs.repeat_interleave(cpp.COLUMNS, 1))
    count = cpp.panel_width() // cpp.COLUMNS
    lists = [panel.flatten() for panel in inputs.to(torch.int32).split(count, 1)]
    return torch.cat([cpp.panels(values).view(torch.int32), *lists])


def kept_inputs(matrix: Tensor, v: int, n: int, m: int) -> Tensor:
    """int64 [depth * n / m, width / v]: which rows of ``matrix`` [depth, width] each ``v`` columns
    keep, of each ``m`` the same number, in ascending order.

    ``v`` divides the width, and ``m`` the channels of a tap. Where fewer than ``n`` of ``m`` are no
    zeros, some of these are kept. Raises :class:`OperandError` if more are: none is dropped.
    """
    return first_kept(kept(matrix, v, n, m), n)


def first_kept(is_kept: Tensor, n: int) -> Tensor:
    """bool [groups, m, lists] -> int64 [groups * n, lists]: the rows of those that are kept, ``n``
    of each group, in ascending order, filled up with some that are not."""
    groups, m, _ = is_kept.shape
    order = is_kept.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices
    first = order[:, :n].sort(1).values
    start = torch.arange(0, groups * m, m, device=is_kept.device).view(-1, 1, 1)
    return (first + start).flatten(0, 1)


def kept(matrix: Tensor, v: int, n: int, m: int) -> Tensor:
    """bool [depth / m, m, width / v]: which rows of ``matrix`` [depth, width] are no zeros in some
    of ``v`` columns. Raises :class:`OperandError` if these are more than ``n`` of ``m``."""
    depth, width = matrix.shape
    if depth % m or width % v:
        raise OperandError(
            f"{v}:{n}:{m}: {m} has to divide {depth} inputs, and {v} {width} columns"
        )
    is_kept = (matrix != 0).view(depth // m, m, -1, v).any(3)
    most = int(is_kept.sum(1).max()) if is_kept.numel() else 0
    if most > n:
        columns = "column keeps" if v == 1 else f"{v} columns keep"
        raise OperandError(
            f"{v}:{n}:{m}: some {columns} {most} of {m} inputs: mask the weight with v={v}, "
            f"n={n}, m={m}, and along its inputs"
        )
    return is_kept


def width(weight: Tensor, depth: int, n: int, m: int) -> int:
    """Columns of a packed ``weight`` of so many inputs."""
    return cpp.values_of(weight) // max(1, depth // m * n)


def launch(
    rows: Tensor, kernel_map: Tensor | None, weight: Tensor, bias: Tensor | None, n: int, m: int
) -> Tensor:
    """:func:`.cpp.launch` for a weight from :func:`pack`."""
    kept = kept_channels(rows, weight, cpp.COLUMNS, n, m)
    return cpp.launch(rows, kernel_map, weight.view(torch.float32), bias, kept)


def kept_channels(rows: Tensor, weight: Tensor, v: int, n: int, m: int) -> int:
    """How many channels of ``rows`` such a ``weight`` has. Raises :class:`OperandError` if it can
    be none for them."""
    if weight.dtype != torch.int32 or weight.dim() != 1 or rows.dim() != 3 or rows.shape[2] % m:
        raise OperandError(
            f"gather_matmul: a weight in the format {v}:{n}:{m} is int32 with one axis, for rows "
            f"[N, R, C] of which {m} divides C, not {list(weight.shape)} for {list(rows.shape)}"
        )
    return rows.shape[2] // m * n
