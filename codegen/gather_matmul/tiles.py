"""Weights of which every V columns keep N of each M consecutive inputs ("tiles V:N:M"), for the
kernel on CUDA: what is kept, and a list for each V columns, the widest that a tile may be."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import OperandError
from ..nm.pattern import NM
from ..operators import KERNEL_DTYPES
from .listed import kept_inputs
from .reference import reference

LEAST, MOST = 16, 64
"""Columns of a tile: of a tensor core's, and as many as leave registers for the addresses."""
_BITS = {2: torch.int16, 4: torch.int32}


def name(kept: NM, channels: int) -> str | None:
    """The format of a weight that keeps so much of ``channels`` inputs, if it has one."""
    if kept.v % LEAST or channels % kept.m:
        return None
    return f"tiles {tile_columns(kept.v)}:{kept.n}:{kept.m}"


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Is the kernel one for this device and dtype?"""
    return device.type == "cuda" and dtype in KERNEL_DTYPES


def tile_columns(v: int) -> int:
    """How wide the tiles of a weight are, of which ``v`` outputs share their inputs: a power of
    2."""
    return min(MOST, v & -v)


def pack(matrix: Tensor, v: int, n: int, m: int) -> Tensor:
    """[depth, width] -> int16, or int32 of float32, [depth * n / m * width * (1 + 4 / (v * size))]:
    the bits of what is kept [depth * n / m, width], then those of int32 [width / v, depth * n / m],
    which row of ``matrix`` each was. Raises :class:`OperandError` as :func:`.listed.kept_inputs`
    does, and for a dtype that the kernel does not take."""
    if matrix.dtype not in KERNEL_DTYPES:
        raise OperandError(f"tiles {v}:{n}:{m}: there is no kernel for a weight of {matrix.dtype}")
    inputs, bits = kept_inputs(matrix, v, n, m), _BITS[matrix.element_size()]
    values = matrix.gather(0, inputs.repeat_interleave(v, 1))
    lists = inputs.t().to(torch.int32).flatten()
    return torch.cat([values.flatten().view(bits), lists.view(bits)])


def parts(
    weight: Tensor, depth: int, dtype: torch.dtype, v: int, n: int, m: int
) -> tuple[Tensor, Tensor]:
    """What is kept, [1, depth * n / m, width], and the lists, where they stand in ``weight``, from
    :func:`pack` of a matrix of this dtype. Raises :class:`OperandError` if it is none of those."""
    kept, outputs = depth // m * n, width(weight, depth, v, n, m)
    count = kept * outputs
    entries = count // v * 4 // weight.element_size()
    bits = _BITS.get(dtype.itemsize)
    if weight.dtype != bits or weight.shape != (count + entries,):
        raise OperandError(
            f"a weight in the format tiles {v}:{n}:{m} is {bits} with one axis for {dtype} and "
            f"{depth} inputs of this pattern, not {weight.dtype} {list(weight.shape)}"
        )
    values, lists = weight.split([count, entries])
    return values.view(dtype).view(1, kept, outputs), lists.view(torch.int32).view(-1, kept)


def unpacked(weight: Tensor, depth: int, dtype: torch.dtype, v: int, n: int, m: int) -> Tensor:
    """The matrix [depth, width] of which :func:`pack` made ``weight``."""
    values, lists = parts(weight, depth, dtype, v, n, m)
    inputs = lists.t().long().repeat_interleave(v, 1)
    return values.new_zeros((depth, values.shape[2])).scatter(0, inputs, values[0])


def width(weight: Tensor, depth: int, v: int, n: int, m: int) -> int:
    """Columns of a packed ``weight`` of so many inputs."""
    size = v * weight.element_size()
    return weight.numel() * size // (size + 4) // max(1, depth // m * n)


def product(
    rows: Tensor,
    kernel_map: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    v: int,
    n: int,
    m: int,
) -> Tensor:
    """Rows [N, R, C], kernel_map int64 [S, taps] into R (None: S is R, each reads its own row),
    weight from :func:`pack`, bias [C_out] -> rows [N, S, C_out]."""
    depth = rows.shape[2] * (1 if kernel_map is None else kernel_map.shape[1])
    if rows.is_cuda:
        from ..gather_conv.triton import launch

        values, lists = parts(weight, depth, rows.dtype, v, n, m)
        epilogue = (None, "none", 0.0, 1.0, None)
        return launch(rows, None, None, kernel_map, values, bias, *epilogue, lists)
    if kernel_map is None:
        kernel_map = torch.arange(rows.shape[1]).unsqueeze(1)
    matrix = unpacked(weight, depth, rows.dtype, v, n, m)
    return reference(rows, kernel_map, matrix.unsqueeze(0), bias)
