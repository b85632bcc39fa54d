"""What packing leaves for the partition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch.fx import Node


@dataclass(frozen=True)
class Packed:
    """What :class:`Pack` leaves on the module, under ``module.meta["packed"]``."""

    outputs: Sequence[Node]
    """The update's results, in the order of the model's."""
    current: Callable[[Node], Node]
    """The update node of a value of the model, packed where it has a mask."""
    committed: Callable[[Node], Node]
    """The update node that takes the place of a recorded value when an edit is committed."""
