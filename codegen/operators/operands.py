"""What launches ask of their operands, which kernels read by address alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import OperandError

Sizes = tuple[int | None, ...]
"""Of an operand; None: any."""


def require(
    kernel: str,
    name: str,
    operand: Tensor | None,
    sizes: Sizes,
    dtypes: Sequence[torch.dtype],
    device: torch.device,
) -> None:
    """Raises :class:`OperandError` unless ``operand`` is absent or as the kernel reads it."""
    if operand is None:
        return
    if operand.dtype in dtypes and operand.device == device and _fit(operand.shape, sizes):
        return
    wanted = " or ".join(map(dtype_name, dtypes))
    raise OperandError(
        f"{kernel} reads {name} as {wanted} {_shown(sizes)} on {device}, but it is "
        f"{dtype_name(operand.dtype)} {list(operand.shape)} on {operand.device}: "
        "hand it what the weight was arranged for"
    )


def _fit(shape: Sequence[int], sizes: Sizes) -> bool:
    if len(shape) != len(sizes):
        return False
    for size, wanted in zip(shape, sizes, strict=True):  # a generator takes twice as long
        if wanted is not None and size != wanted:
            return False
    return True


def dtype_name(dtype: torch.dtype) -> str:
    """As files and messages have it: "float32"."""
    return str(dtype).removeprefix("torch.")


def _shown(sizes: Sizes) -> str:
    return f"[{', '.join('any' if size is None else str(size) for size in sizes)}]"
