"""What packing leaves for the partition."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node


@dataclass(frozen=True)
class Fold:
    """A constant of the update graph: ``function(parameter, *args)``."""

    name: str
    parameter: str
    function: Callable[..., torch.Tensor]
    args: tuple[Any, ...]

    def __call__(self, module: torch.nn.Module) -> torch.Tensor:
        value = operator.attrgetter(self.parameter)(module)
        return self.function(value.detach(), *self.args)


@dataclass
class Packed:
    """What :class:`Pack` leaves on the module, under ``module.meta["packed"]``."""

    outputs: Any = None
    """The update graph's results, arranged as the model's."""
    committed: dict[Node, Node] = field(default_factory=dict)
    """Recorded node -> its value after the update."""
    folds: list[Fold] = field(default_factory=list)
