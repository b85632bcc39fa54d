"""How what is large is told in a few words."""

from __future__ import annotations

import math
import re
from typing import Any

from torch import Tensor

_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(i?))?B", re.IGNORECASE)


def size_of(count: int) -> str:
    """Bytes, in the unit that fits."""
    for unit, size in _UNITS.items():
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def size_for(count: int) -> str:
    """The same, with no fewer bytes: room for ``count``."""
    for unit, size in _UNITS.items():
        if count >= size:
            return f"{math.ceil(10 * count / size) / 10:.1f} {unit}"
    return f"{count} B"


def bytes_of(text: str) -> int:
    """Of "4 GiB", "1.5GB", "512 B". Raises :class:`ValueError`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is no size")
    number, prefix, binary = found.groups()
    unit = math.prod([1024 if binary else 1000] * " KMGT".index((prefix or " ").upper()))
    return math.ceil(float(number) * unit)


def sites_of(mask: Tensor) -> str:
    """How much of a mask is active."""
    return f"{int(mask.sum())} of {mask.numel()} sites"


def leaves_of(leaves: tuple[Any, ...], most: int = 3) -> str:
    """The shapes of the first tensors, and how many there are besides."""
    shapes = [str(list(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor)]
    more = f" and {len(shapes) - most} more" if len(shapes) > most else ""
    return ", ".join(shapes[:most]) + more
