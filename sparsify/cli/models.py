"""What MODEL of the command line becomes, and the models that a user's function makes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from ..codegen.errors import ModelError

Grids = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class Example:
    """A model in eval mode, the inputs of one call, and the grids of those that are tokens."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grids: Grids = field(default_factory=dict)


class Source(Protocol):
    """Where a model comes from."""

    def build(self, grids: Grids) -> Example:
        """``grids`` are the user's. Raises :class:`ModelError`."""
        ...


@dataclass(frozen=True)
class FromPython:
    """A function without arguments that returns ``(model, args)`` or ``(model, args, kwargs)``."""

    module: str
    function: str

    def build(self, grids: Grids) -> Example:
        name = f"python:{self.module}:{self.function}"
        function = getattr(_imported(self.module), self.function, None)
        if not callable(function):
            raise ModelError(f"{name}: {self.module} has no function {self.function}")
        match function():
            case (nn.Module() as model, tuple() as args):
                return Example(model.eval(), args, {}, grids)
            case (nn.Module() as model, tuple() as args, dict() as kwargs):
                return Example(model.eval(), args, kwargs, grids)
        raise ModelError(
            f"{name} returned something else: "
            "return (model, args) or (model, args, kwargs), with a tuple and a dict"
        )


def _imported(name: str) -> Any:
    """The module, which may lie in the current folder."""
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # A module that is there but misses another one is the user's to see in full.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ModelError(
            f"there is no module {error.name!r} here or installed: "
            "run this in the folder that holds it"
        ) from None
