"""What compiled code takes its operands for: it asks none of them itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..errors import CompileError
from ..operators.operands import dtype_name


@dataclass(frozen=True)
class Operand:
    """A tensor of this dtype on this device. Where ``shape`` has -1, a size that stays unknown,
    ``strides`` is None: the tensor is dense, with its axes stored in this ``order``."""

    dtype: torch.dtype
    device: torch.device
    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    order: tuple[int, ...] = ()

    @staticmethod
    def of(value: Any, unknown: int | None = None) -> Operand:
        """Like ``value``, with a size that is ``unknown`` on this axis. Raises
        :class:`CompileError`."""
        if type(value) not in (Tensor, Parameter) or value.layout is not torch.strided:
            raise CompileError(f"a {type(value).__name__} is no plain tensor")
        if unknown is None:
            return Operand(value.dtype, value.device, tuple(value.shape), value.stride())
        order = tuple(sorted(range(value.dim()), key=lambda axis: (-value.stride(axis), axis)))
        if not value.permute(order).is_contiguous():
            raise CompileError(f"{list(value.shape)} with the strides {value.stride()} has gaps")
        shape = tuple(-1 if i == unknown else size for i, size in enumerate(value.shape))
        return Operand(value.dtype, value.device, shape, None, order)

    def takes(self, value: Tensor) -> bool:
        """Is ``value`` such a tensor?"""
        if value.dtype is not self.dtype or value.device != self.device:
            return False
        if self.strides is not None:
            return value.shape == self.shape and value.stride() == self.strides
        if value.dim() != len(self.shape):
            return False
        alike = all(own in (-1, size) for own, size in zip(self.shape, value.shape, strict=True))
        return alike and value.permute(self.order).is_contiguous()

    def empty(self, size: Callable[[], Any]) -> Tensor:
        """One whose unknown size is what ``size`` gives."""
        if self.strides is not None:
            return torch.empty_strided(
                self.shape, self.strides, dtype=self.dtype, device=self.device
            )
        sizes = [size() if own == -1 else own for own in self.shape]
        stored = torch.empty(
            [sizes[axis] for axis in self.order], dtype=self.dtype, device=self.device
        )
        return stored.permute([self.order.index(axis) for axis in range(len(self.order))])

    def to_json(self) -> dict[str, Any]:
        names = {"dtype": dtype_name(self.dtype), "device": str(self.device)}
        return {**names, "shape": self.shape, "strides": self.strides, "order": self.order}

    @staticmethod
    def from_json(written: dict[str, Any]) -> Operand:
        shape, strides, order = (
            written[name] if written[name] is None else tuple(written[name])
            for name in ("shape", "strides", "order")
        )
        dtype, device = getattr(torch, written["dtype"]), torch.device(written["device"])
        return Operand(dtype, device, shape, strides, order)
