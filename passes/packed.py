"""What packing leaves for the partition."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from sparsify.codegen.ambient import as_captured
from torch.fx import Node


@dataclass(frozen=True)
class Fold:
    """A constant of the graphs: ``function(*weights, *args)``."""

    name: str
    weights: tuple[str, ...]
    function: Callable[..., torch.Tensor]
    args: tuple[Any, ...]

    def __call__(self, module: torch.nn.Module) -> torch.Tensor:
        """As captured, whatever the modes of the caller."""
        values = [operator.attrgetter(name)(module) for name in self.weights]
        with as_captured(values[0].device.type):
            return self.function(*(value.detach() for value in values), *self.args)

    def then(self, name: str, function: Callable[..., torch.Tensor], args: tuple[Any, ...]) -> Fold:
        """``function`` of this constant, as one of the same weights."""
        first, count = self, len(self.weights)

        def both(*given: Any) -> torch.Tensor:
            made = first.function(*given[:count], *first.args)
            return function(made, *given[count:])

        return Fold(name, self.weights, both, args)


@dataclass
class Packed:
    """What :class:`Pack` leaves on the module, under ``module.meta["packed"]``."""

    outputs: Any = None
    """The update graph's results, arranged as the model's."""
    committed: dict[Node, Node] = field(default_factory=dict)
    """Recorded node -> its value after the update."""
    folds: list[Fold] = field(default_factory=list)
