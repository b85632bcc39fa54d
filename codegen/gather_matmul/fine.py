"""Weights stored for sites along the lanes of vectors, on CPUs (``fine.cpp``): what is kept, and
which inputs these are. Each output has its own N of each M consecutive ones (1:N:M), or every 16
share them (sites 16:N:M)."""

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
KINDS = ("", 1), ("sites", cpp.COLUMNS)  # of formats, and how many outputs share what they keep


def name(kept: NM, channels: int) -> str | None:
    """The format of a weight that keeps so much of ``channels`` inputs, each output its own, if it
    has one."""
    return f"1:{kept.n}:{kept.m}" if _fits(kept, channels) else None


def shared_name(kept: NM, channels: int) -> str | None:
    """The same of one of which 16 outputs share what they keep."""
    fits = _fits(kept, channels) and kept.v % cpp.COLUMNS == 0
    return f"sites {cpp.COLUMNS}:{kept.n}:{kept.m}" if fits else None


def _fits(kept: NM, channels: int) -> bool:
    return kept.m <= MOST_INPUTS and channels % kept.m == 0


@cache
def _library() -> Any:
    library: Any = native.library(Path(__file__).with_suffix(".cpp"))
    if library is not None:
        library.loads_bound.restype = library.block_inputs.restype = ctypes.c_int64
        library.gather_matmul_fine.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 10
        library.gather_matmul_fine.restype = ctypes.c_int64
    return library


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Is the kernel one for this device and dtype, and can it be compiled here?"""
    return device.type == "cpu" and dtype == torch.float32 and _library() is not None


def loads_bound() -> bool:
    """Has this CPU no more loads a cycle than multiplications of whole vectors? Then a product that
    loads an input for each, as those with outputs along the lanes do, is bound by its loads."""
    return _library() is not None and bool(_library().loads_bound())


def pack(matrix: Tensor, v: int, n: int, m: int) -> Tensor:
    """Float32 [depth, width] -> int32, one axis: for blocks of inputs the bits of what is kept
    [width, inputs], then in the same order a byte for each input of each ``v`` columns, 1 or 16:
    which one of its block it was. Zeros fill the last number.

    16 divides the width, and ``m`` the channels of a tap. Where fewer than ``n`` of ``m`` are no
    zeros, some of these are kept. Raises :class:`OperandError` if more are: none is dropped.
    """
    if matrix.shape[1] % cpp.COLUMNS:
        raise OperandError(f"{v}:{n}:{m}: 16 has to divide {matrix.shape[1]} columns")
    inputs = listed.kept_inputs(matrix, v, n, m).t()  # [width / v, kept]
    values = matrix.t().gather(1, inputs.repeat_interleave(v, 0)).view(torch.int32)
    block = _block(m)
    places = (inputs % block).to(torch.uint8)
    size = block // m * n
    parts = (part.flatten() for part in values.split(size, 1))
    ends = torch.cat([part.flatten() for part in places.split(size, 1)])
    ends = torch.nn.functional.pad(ends, (0, -len(ends) % 4))
    return torch.cat([*parts, ends.view(torch.int32)])


def width(weight: Tensor, depth: int, v: int, n: int, m: int) -> int:
    """Columns of a packed ``weight`` of so many inputs."""
    return _values_of(weight, v) // max(1, depth // m * n)


def launch(
    rows: Tensor,
    kernel_map: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    v: int,
    n: int,
    m: int,
) -> Tensor:
    """As :func:`.cpp.launch`, for a weight from :func:`pack`."""
    kept = listed.kept_channels(rows, weight, v, n, m)
    stored = weight.view(torch.float32)
    return _kernel(v, m)(rows, kernel_map, stored, bias, kept, _values_of(weight, v))


@cache
def _kernel(v: int, m: int) -> cpp.Kernel:
    return cpp.Kernel(_library().gather_matmul_fine, settings=(_block(m), v))


def _values_of(weight: Tensor, v: int) -> int:
    """How many numbers of a packed weight are no places."""
    return weight.numel() * 4 * v // (4 * v + 1)


def _block(m: int) -> int:
    """Inputs of a block, whole groups."""
    return max(1, int(_library().block_inputs()) // m) * m
