"""Kernel maps and halos on CPUs, in C++ (``kernel_map.cpp``): one walk over what is read, where
tensor operations take ten."""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import OperandError
from ..geometry import Geometry, axes
from ..operators import native
from ..operators.operands import require

_HERE = torch.device("cpu")
# A few numbers a row and a column. Typed: named tuples of two types can be equal.
_axes = lru_cache(maxsize=1024, typed=True)(axes)


@cache
def _library() -> Any:
    library: Any = native.library(Path(__file__).with_name("kernel_map.cpp"))
    if library is not None:
        library.read_sites.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int64] * 8
        library.read_sites.restype = ctypes.c_int64
        library.number_sites.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
        library.number_sites.restype = ctypes.c_int64
    return library


def takes(*sites: Tensor | None) -> bool:
    """Is there a compiler, and are these int64 numbers in this machine's memory?

    Not under a mode that watches operations of tensors, of which C++ makes none (fake tensors).
    """
    if _library() is None or torch._C._len_torch_dispatch_stack() > 0:
        return False
    given = (table for table in sites if table is not None)
    return all(t.device.type == "cpu" and t.dtype == torch.int64 for t in given)


def read_sites(
    geometry: Geometry, in_sites: Tensor | None, out_sites: Tensor | None, items: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """What output sites read, and which of it is not active.

    ``in_sites`` int64 [S_in], ``out_sites`` int64 [S_out] and ``items`` N are as in
    :func:`sparsify.codegen.tables.kernel_map`. Returns input sites int64 [S_out, taps], N * H * W
    for padding; the halo int64 [S_halo], site 0 if there is none; and for :func:`number_sites` what
    each site is, int32 [N * H * W + 1]: the place of an active one, a negative mark otherwise, and
    last the number of active ones. Raises :class:`OperandError` for sites outside of their grid.
    """
    for name, table in (("in_sites", in_sites), ("out_sites", out_sites)):
        require("kernel_map", name, table, (None,), (torch.int64,), _HERE)
    rows, columns = _axes(geometry)
    count = items * geometry.in_grid[0] * geometry.in_grid[1]
    sites = items * len(rows) * len(columns) if out_sites is None else len(out_sites)
    reads = rows.new_empty((sites, rows.shape[1] * columns.shape[1]))
    halo = rows.new_empty(max(1, min(count, reads.numel())))
    position = rows.new_empty(count + 1, dtype=torch.int32)
    given = (in_sites, out_sites)
    operands = (rows, columns, *(t if t is None else t.contiguous() for t in given))
    addresses = [t if t is None else t.data_ptr() for t in (*operands, reads, halo, position)]
    active = count if in_sites is None else len(in_sites)
    taps = rows.shape[1], columns.shape[1]
    sizes = (count, active, sites, *taps, len(rows), len(columns), items)
    if not (found := _library().read_sites(*addresses, *sizes)):
        raise OperandError(
            f"kernel_map: a site lies outside of the grids {geometry.in_grid} -> "
            f"{geometry.out_grid}: take the sites of masks of these sizes"
        )
    return reads, halo[:found].clone(), position


def number_sites(reads: Tensor, halo: Tensor, position: Tensor) -> Tensor:
    """Sites ``reads`` become, in place, indices of ``[active input sites | halo | zeros]``.

    ``halo`` may repeat sites; ``position`` is written to, and of no more use. Raises
    :class:`OperandError`.
    """
    require("kernel_map", "reads", reads, (None, None), (torch.int64,), _HERE)
    require("kernel_map", "halo", halo, (None,), (torch.int64,), _HERE)
    require("kernel_map", "position", position, (None,), (torch.int32,), _HERE)
    assert reads.is_contiguous() and position.is_contiguous(), "they are written to"
    halo, sizes = halo.contiguous(), (len(position) - 1, reads.numel(), len(halo))
    addresses = (reads.data_ptr(), halo.data_ptr(), position.data_ptr())
    if not _library().number_sites(*addresses, *sizes):
        raise OperandError("kernel_map: what is read is no site: take it from read_sites")
    return reads
