"""Weights of which each output keeps its own N of each M consecutive inputs (1:N:M), on CPUs: what
is kept, and which inputs these are, for the kernel in ``fine.cpp``."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import OperandError
from ..nm.pattern import NM
from ..operators import native
from . import cpp, listed

MOST_INPUTS = 256  # of a group: the kernel finds each by a byte


def name(kept: NM, channels: int) -> str | None:
    """The format of a weight that keeps so much of ``channels`` inputs, if it has one."""
    fits = kept.m <= MOST_INPUTS and channels % kept.m == 0
    return f"1:{kept.n}:{kept.m}" if fits else None


@cache
def _library() -> Any:
    library: Any = native.library(Path(__file__).with_suffix(".cpp"))
    if library is not None:
        library.block_inputs.restype = ctypes.c_int64
        library.gather_matmul_fine.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 9
        library.gather_matmul_fine.restype = ctypes.c_int64
    return library


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Is the kernel one for this device and dtype, and can it be compiled here?"""
    return device.type == "cpu" and dtype == torch.float32 and _library() is not None


def pack(matrix: Tensor, n: int, m: int) -> Tensor:
    """Float32 [depth, width] -> int32 [depth * n / m * width * 5 / 4]: for blocks of inputs the
    bits of what is kept [width, inputs], then a byte for each, in the same order: which input of
    its block it was.

    16 divides the width, and ``m`` the channels of a tap. Where fewer than ``n`` of ``m`` are no
    zeros, some of these are kept. Raises :class:`OperandError` if more are: none is dropped.
    """
    depth, width = matrix.shape
    if depth % m or width % cpp.COLUMNS:
        raise OperandError(f"1:{n}:{m}: {m} has to divide {depth} inputs, and 16 {width} columns")
    is_kept = (matrix != 0).view(depth // m, m, width)
    most = int(is_kept.sum(1).max()) if is_kept.numel() else 0
    if most > n:
        raise OperandError(
            f"1:{n}:{m}: some column keeps {most} of {m} inputs: mask the weight with n={n}, "
            f"m={m}, and along its inputs"
        )
    inputs, block = listed.first_kept(is_kept, n).t(), _block(m)
    values = matrix.t().gather(1, inputs).view(torch.int32)
    places = (inputs % block).to(torch.uint8)
    size = block // m * n
    parts = (part.flatten() for part in values.split(size, 1))
    ends = torch.cat([part.flatten() for part in places.split(size, 1)])
    return torch.cat([*parts, ends.view(torch.int32)])


def width(weight: Tensor, depth: int, n: int, m: int) -> int:
    """Columns of a packed ``weight`` of so many inputs."""
    return _values_of(weight) // max(1, depth // m * n)


def launch(
    rows: Tensor, kernel_map: Tensor | None, weight: Tensor, bias: Tensor | None, n: int, m: int
) -> Tensor:
    """As :func:`.cpp.launch`, for a weight from :func:`pack`."""
    if weight.dtype != torch.int32 or weight.dim() != 1 or rows.dim() != 3 or rows.shape[2] % m:
        raise OperandError(
            f"gather_matmul: a weight in the format 1:{n}:{m} is int32 with one axis, for rows "
            f"[N, R, C] of which {m} divides C, not {list(weight.shape)} for {list(rows.shape)}"
        )
    kept = rows.shape[2] // m * n
    stored = weight.view(torch.float32)
    return _kernel(m)(rows, kernel_map, stored, bias, kept, _values_of(weight))


@cache
def _kernel(m: int) -> cpp.Kernel:
    return cpp.Kernel(_library().gather_matmul_fine, settings=(_block(m),))


def _values_of(weight: Tensor) -> int:
    """How many numbers of a packed weight are no places."""
    return weight.numel() * 4 // 5


def _block(m: int) -> int:
    """Inputs of a block, whole groups."""
    return max(1, int(_library().block_inputs()) // m) * m
