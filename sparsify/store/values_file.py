"""Tensors in a file of their own, which are read into memory of their own."""

from __future__ import annotations

import json
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..baseline import in_own_memory
from ..codegen.checksum import Memory
from ..codegen.errors import StoreError

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class _Spot:
    """A tensor, and where it begins in the file."""

    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    checksum: tuple[int | float, ...]


class ValuesFile:
    """A safetensors file that is written once, and removed with this object.

    ``path`` has no file, or the whole one. Raises :class:`StoreError`.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        """Of tensors on the host."""
        self.path = path
        own = in_own_memory({name: tensor.contiguous() for name, tensor in tensors.items()})
        self._remove = weakref.finalize(self, _removed, path, os.getpid())
        self._remove.atexit = False  # the folder goes as a whole
        new = path.with_suffix(".new")
        try:
            save_file(own, new)
            starts = _starts(new)
            new.replace(path)
        except (OSError, SafetensorError) as error:
            new.unlink(missing_ok=True)
            raise StoreError(
                f"{path} cannot be written ({error}): give the store another folder, or less disk"
            ) from None
        self._spots = {
            name: _Spot(starts[name], tensor.dtype, tuple(tensor.shape), _checksum(tensor))
            for name, tensor in sorted(own.items(), key=lambda one: starts[one[0]])
        }

    def read(self, pinned: bool = False) -> Tensors:
        """The tensors that were written, in new memory: no page of the file stays mapped.

        Raises :class:`StoreError` if the file is not as it was written.
        """
        try:
            with self.path.open("rb") as file:
                return {name: self._one(file, spot, pinned) for name, spot in self._spots.items()}
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be read ({error.strerror}): record again"
            ) from None

    def _one(self, file: Any, spot: _Spot, pinned: bool) -> Tensor:
        own = torch.empty(spot.shape, dtype=spot.dtype, pin_memory=pinned)
        file.seek(spot.start)
        read = file.readinto(own.view(-1).view(torch.uint8).numpy()) if own.nbytes else 0
        # Summed at once, while it is in the processor's cache.
        if read != own.nbytes or _checksum(own) != spot.checksum:
            raise StoreError(f"{self.path} was changed after it was written: record again")
        return own


def _checksum(tensor: Tensor) -> tuple[int | float, ...]:
    return Memory([tensor]).whole(threads=1)


def _starts(path: Path) -> dict[str, int]:
    """Where each tensor of a safetensors file begins."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    return {name: 8 + size + about["data_offsets"][0] for name, about in header.items()}


def _removed(path: Path, owner: int) -> None:
    if os.getpid() == owner:
        path.unlink(missing_ok=True)
