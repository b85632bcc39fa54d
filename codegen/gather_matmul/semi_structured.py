"""Weights of which each column keeps 2 of each 4 consecutive inputs, for the sparse tensor cores of
GPUs since Ampere: torch's own product (cuSPARSELt, as ``torch.sparse.to_sparse_semi_structured``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..errors import OperandError
from ..nm.pattern import NM
from .listed import kept

NAME = "2:4"
DTYPES = (torch.float16, torch.bfloat16)
COLUMNS = 16
"""What the width of a weight is a multiple of, and its depth."""
_ROWS = 8
"""What the product wants a multiple of."""


def name(pattern: NM, channels: int) -> str | None:
    """The format of a weight that keeps so much of ``channels`` inputs, if it has one."""
    fits = 4 % pattern.m == 0 and 2 * pattern.n <= pattern.m
    return NAME if fits and channels % COLUMNS == 0 else None


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Has the device such tensor cores, and torch the library?"""
    if device.type != "cuda" or dtype not in DTYPES:
        return False
    available: bool = torch.backends.cusparselt.is_available()
    return available and torch.cuda.get_device_capability(device) >= (8, 0)


def pack(matrix: Tensor) -> Tensor:
    """[depth, width], both multiples of 16, -> [width, ...] in the library's own order: what is
    kept, and two bits for each that say which input it was.

    Raises :class:`OperandError` if some column keeps more than 2 of 4: none is dropped.
    """
    depth, width = matrix.shape
    if depth % COLUMNS or width % COLUMNS:
        raise OperandError(f"2:4: {COLUMNS} has to divide {depth} inputs and {width} columns")
    kept(matrix, 1, 2, 4)
    return torch._cslt_compress(matrix.t().contiguous()).view(width, -1)


def product(rows: Tensor, kernel_map: Tensor | None, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows [N, R, C], kernel_map int64 [S, taps] into R (None: S is R, each reads its own row),
    weight from :func:`pack`, bias [C_out] -> rows [N, S, C_out]."""
    batch, count, channels = rows.shape
    if kernel_map is not None:
        count, taps = kernel_map.shape
        rows, channels = rows.index_select(1, kernel_map.flatten()), taps * channels
    columns = rows.reshape(-1, channels).contiguous()  # the library asks for no other strides
    padded = pad(columns, (0, 0, 0, -len(columns) % _ROWS))
    out = torch._cslt_sparse_mm(weight, padded.t(), bias=bias, transpose_result=True)
    return out[: len(columns)].view(batch, count, -1)
