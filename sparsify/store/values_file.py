"""Tensors in a file of their own, which are read into memory of their own."""

from __future__ import annotations

import errno
import json
import math
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..baseline import in_own_memory
from ..codegen.checksum import Memory
from ..codegen.errors import StoreError

Tensors = dict[str, Tensor]
_PAGE = 4096
_DIRECT: int = getattr(os, "O_DIRECT", 0)
"""Past the system's own cache, which for sessions larger than memory only costs time: what is read
next was dropped long ago."""


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
            with _opened(self.path) as file:
                return {name: self._one(file, spot, pinned) for name, spot in self._spots.items()}
        except OSError as error:
            raise StoreError(
                f"{self.path} cannot be read ({error.strerror}): record again"
            ) from None

    def _one(self, file: FileIO, spot: _Spot, pinned: bool) -> Tensor:
        size = math.prod(spot.shape) * spot.dtype.itemsize
        read = _read(file, spot.start, size, pinned)
        own = None if read is None else read.view(spot.dtype).view(spot.shape)
        # Summed at once, while it is in the processor's cache.
        if own is None or _checksum(own) != spot.checksum:
            raise StoreError(f"{self.path} was changed after it was written: record again")
        return own


def _opened(path: Path) -> FileIO:
    """To be read, directly where its file system can."""
    try:
        return FileIO(path, opener=lambda name, flags: os.open(name, flags | _DIRECT))
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return FileIO(path)


def _read(file: FileIO, start: int, size: int, pinned: bool) -> Tensor | None:
    """uint8 [size] from ``start`` on; None if the file ends before.

    Direct reads are of whole pages, into whole pages.
    """
    first, stop = start // _PAGE * _PAGE, -(-(start + size) // _PAGE) * _PAGE
    held = torch.empty(stop - first + _PAGE, dtype=torch.uint8, pin_memory=pinned)
    pages = held[-held.data_ptr() % _PAGE :][: stop - first]
    file.seek(first)
    done, needed = 0, start + size - first if size else 0
    while done < needed:
        some = file.readinto(pages[done:].numpy().data)
        done += some
        if not some or (done < needed and done % _PAGE):  # the file ends
            return None
    return pages[start - first :][:size]


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
