"""The product of gathered rows on CPUs, in C++ (``gather_matmul.cpp``), for float32.

Where there is no compiler, products are the library's.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import OperandError
from ..operators import native
from ..operators.operands import require

_HERE, _FLOATS, _NUMBERS = torch.device("cpu"), (torch.float32,), (torch.int64,)
COLUMNS = 16  # of a width: every number of lanes divides it
LISTED = "LISTED"  # the macro with which the kernel takes lists


@cache
def _library(defined: str = "") -> Any:
    library: Any = native.library(Path(__file__).with_name("gather_matmul.cpp"), defined)
    if library is not None:
        library.panel_width.restype = ctypes.c_int64
        library.gather_matmul.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int64] * 8
        library.gather_matmul.restype = ctypes.c_int64
    return library


def runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Is the kernel one for this device and dtype, and can it be compiled here?"""
    return device.type == "cpu" and dtype == torch.float32 and _library() is not None


def panel_width() -> int:
    """Columns of a panel, a multiple of ``COLUMNS``."""
    return int(_library().panel_width())


def panels(matrix: Tensor) -> Tensor:
    """Float32 weight [depth, width], of a width that 16 divides, as the kernel reads it: [depth *
    width], in panels of columns."""
    depth, width = matrix.shape
    rest = width % panel_width()
    whole, narrow = matrix.split((width - rest, rest), 1)
    panels = whole.view(depth, -1, panel_width()).transpose(0, 1)
    return torch.cat((panels.flatten(), narrow.flatten())) if rest else panels.flatten()


def launch(
    rows: Tensor,
    kernel_map: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    kept: int | None = None,
) -> Tensor:
    """Rows [N, R, C], kernel_map int64 [S, taps] into R (None: S is R, each reads its own row),
    weight from :func:`panels` of [taps * C, C_out], bias [C_out] -> rows [N, S, C_out].

    A weight that has only ``kept`` channels of each tap, [taps * kept, C_out], ends with lists of
    them (:mod:`.listed`). Raises :class:`OperandError`.
    """
    library = _library() if kept is None else _library(LISTED)
    numbers = weight.numel() if kept is None else values_of(weight)
    own = Kernel(library.gather_matmul, checks_lists=kept is not None)
    return own(rows, kernel_map, weight, bias, kept, numbers)


class Kernel(NamedTuple):
    """A function of C++ that returns whether all places that it is told of exist; it computes
    nothing if not."""

    function: Callable[..., int]
    checks_lists: bool = False
    """Can lists of inputs be wrong, too?"""
    settings: tuple[int, ...] = ()
    """Its own last arguments."""

    def __call__(
        self,
        rows: Tensor,
        kernel_map: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        kept: int | None,
        numbers: int,
    ) -> Tensor:
        """As :func:`launch`, for a weight whose first ``numbers`` are no entries of lists."""
        width = _checked_width(rows, kernel_map, weight, bias, kept, numbers)
        batch, count, channels = rows.shape
        sites, taps = (count, 1) if kernel_map is None else kernel_map.shape
        out = rows.new_empty((batch, sites, width))
        operands = [t if t is None else t.contiguous() for t in (rows, kernel_map, weight, bias)]
        addresses = [t if t is None else t.data_ptr() for t in (*operands, out)]
        sizes = (batch, count, channels, kept or channels, sites, taps, width)
        threads = torch.get_num_threads()
        if not self.function(*addresses, *sizes, threads, *self.settings):
            lists = f", or a list of inputs outside of the {channels} channels"
            other = lists if self.checks_lists else ""
            raise OperandError(
                f"gather_matmul: kernel_map points outside of the {count} rows{other}: "
                "make it of these sites"
            )
        return out


def values_of(weight: Tensor) -> int:
    """How many numbers of a weight with lists are no entries of these."""
    return weight.numel() * COLUMNS // (COLUMNS + 1)


def _checked_width(
    rows: Tensor,
    kernel_map: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    kept: int | None,
    numbers: int,
) -> int:
    """Columns of the result, once everything is what C++ takes it for."""
    if not _all_fit(rows, kernel_map, weight, bias):
        require("gather_matmul", "rows", rows, (None, None, None), _FLOATS, _HERE)
        require("gather_matmul", "kernel_map", kernel_map, (None, None), _NUMBERS, _HERE)
        require("gather_matmul", "weight", weight, (None,), _FLOATS, _HERE)
        require("gather_matmul", "bias", bias, (None,), _FLOATS, _HERE)
    depth = (kept or rows.size(2)) * (1 if kernel_map is None else kernel_map.size(1))
    width = numbers // depth if depth else 0
    if width * depth != numbers or width % COLUMNS:
        raise OperandError(
            f"gather_matmul: weight has {numbers} numbers, which is no width that "
            f"{COLUMNS} divides for {depth} taps times channels: arrange it for these rows"
        )
    if bias is not None and bias.numel() != width:
        require("gather_matmul", "bias", bias, (width,), _FLOATS, _HERE)
    return width


def _all_fit(rows: Tensor, kernel_map: Tensor | None, weight: Tensor, bias: Tensor | None) -> bool:
    """In a microsecond, which is a hundredth of the smallest launches."""
    floats = [(rows, 3), (weight, 1)] if bias is None else [(rows, 3), (weight, 1), (bias, 1)]
    for operand, dim in floats:
        if operand.dtype is not torch.float32 or not operand.is_cpu or operand.dim() != dim:
            return False
    if kernel_map is None:
        return True
    return kernel_map.dtype is torch.int64 and kernel_map.is_cpu and kernel_map.dim() == 2
