"""Checksums of tensors: on CPUs in C++ (``checksum.cpp``), elsewhere and without a compiler by
tensor operations.

A 64-bit checksum of all bytes misses a change once in 2^64; a *sample* of one word of each 16 KiB
(and of small tensors everything) sees what an optimizer, a merge or a scaling does, in the
time that a walk through the page tables takes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..operators import native

_BLOCK = 2048  # words
_NORMED = (torch.float32, torch.float16, torch.bfloat16)
_GOLDEN = -7046029254386353131  # its multiples are spread over all bits


@cache
def _library() -> Any:
    library: Any = native.library(Path(__file__).with_name("checksum.cpp"))
    if library is not None:
        library.checksum.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 3
        library.checksum.restype = ctypes.c_uint64
    return library


class Memory:
    """The memory of ``tensors``, strided ones, as long as none of them moves."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tensors  # or what is at their addresses may be another's
        in_cpp = _library() is not None
        host = [t for t in tensors if t.device.type == "cpu"]
        self._by_torch = [] if in_cpp else host
        self._away = [t for t in tensors if t.device.type not in ("cpu", "meta")]
        extents = [(t.data_ptr(), _elements(t) * t.element_size()) for t in host if in_cpp]
        self._count = len(extents)
        self._starts = (ctypes.c_int64 * self._count)(*(start for start, _ in extents))
        self._sizes = (ctypes.c_int64 * self._count)(*(size for _, size in extents))

    def sampled(self) -> tuple[int, ...]:
        """Of a few words of each page, on CPUs alone: other devices would have to be waited for."""
        # By one thread, which takes less time than a second one that has to be waited for.
        return self._host(whole=False, threads=1)

    def whole(self, threads: int | None = None) -> tuple[int | float, ...]:
        """Of all bytes; on other devices of the norms of floating-point tensors. By as many
        ``threads`` as torch has, if not by fewer."""
        norms = [t for t in self._away if t.dtype in _NORMED]
        values = torch._foreach_norm(norms, dtype=torch.float32) if norms else ()
        others = [_digest(t, 1) for t in self._away if t.dtype not in _NORMED]
        host = self._host(whole=True, threads=threads or torch.get_num_threads())
        return *host, *_numbers(values), *_numbers(others)

    def _host(self, whole: bool, threads: int) -> tuple[int, ...]:
        if not self._count:
            step = 1 if whole else _BLOCK
            return tuple(int(_digest(tensor, step)) for tensor in self._by_torch)
        arrays = (ctypes.addressof(self._starts), ctypes.addressof(self._sizes))
        return (_library().checksum(*arrays, self._count, whole, threads),)


def _elements(tensor: Tensor) -> int:
    """From the first to the last one, gaps included."""
    if not tensor.numel():
        return 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in pairs)


def _numbers(values: Sequence[Tensor]) -> list[Any]:
    """Of scalars of one dtype, waiting for their devices once each."""
    devices = dict.fromkeys(value.device for value in values)
    stacks = [torch.stack([v for v in values if v.device == device]) for device in devices]
    return [number for stack in stacks for number in stack.tolist()]


@torch.no_grad()
def _digest(tensor: Tensor, step: int) -> Tensor:
    """int64 scalar: every ``step``-th word times an odd number of its own, summed modulo 2^64."""
    size = _elements(tensor) * tensor.element_size()
    start = tensor.storage_offset() * tensor.element_size()
    content = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    content.set_(tensor.untyped_storage(), start, (size,))  # type: ignore[call-overload]
    content = content.clone() if start % 8 else content
    body, rest = content.split([size - size % 8, size % 8])
    words = body.view(torch.int64)
    words = words if len(words) <= _BLOCK else words[::step]
    last = torch.nn.functional.pad(rest, (0, -len(rest) % 8)).view(torch.int64)
    words = torch.cat([words, last])
    positions = torch.arange(1, len(words) + 1, device=words.device) * _GOLDEN | 1
    # The shift spreads signs, which the sum alone would cancel in pairs.
    return ((words ^ (words >> 29)) * positions).sum()
