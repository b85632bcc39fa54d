"""What depends on a mask alone."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Tables:
    """What a program made of a mask."""

    mask: Tensor
    """bool [H, W], on the host."""
    tables: list[Tensor]
    masks: dict[str, Tensor]
    """bool [H, W], by the name of their node."""
    is_dense: bool
    """The edit is so large that the dense model runs instead of the update."""

    @cached_property
    def is_empty(self) -> bool:
        return not bool(self.mask.any())


@dataclass(eq=False)
class Plan:
    """A mask [H, W], or [N, H, W], and, per program, the tables made from it (the union)."""

    mask: Tensor
    tables: MutableMapping[object, Tables] = field(default_factory=WeakKeyDictionary)
    """They live as long as their programs."""

    def __getstate__(self) -> dict[str, Any]:
        """The mask alone."""
        return {"mask": self.mask, "tables": WeakKeyDictionary()}

    @cached_property
    def items(self) -> list[Plan]:
        """The plan of each item of the batch; empty if they share one mask."""
        if not isinstance(self.mask, Tensor) or self.mask.dim() != 3:
            return []
        return [] if bool((self.mask == self.mask[:1]).all()) else [Plan(m) for m in self.mask]
