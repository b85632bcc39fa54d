"""How what is large is told in a few words."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def size_of(count: int) -> str:
    """Bytes, in the unit that fits."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"


def sites_of(mask: Tensor) -> str:
    """How much of a mask is active."""
    return f"{int(mask.sum())} of {mask.numel()} sites"


def leaves_of(leaves: tuple[Any, ...], most: int = 3) -> str:
    """The shapes of the first tensors, and how many there are besides."""
    shapes = [str(list(leaf.shape)) for leaf in leaves if isinstance(leaf, Tensor)]
    more = f" and {len(shapes) - most} more" if len(shapes) > most else ""
    return ", ".join(shapes[:most]) + more
