"""Sampling by a schedule: key steps call the model, the others take what is forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .forecast import Forecaster
from .passes.reuse import Part
from .program import Program
from .schedule import Schedule
from .signature import Call


class Host(Protocol):
    """What sampling needs of the module."""

    def program(self, call: Call, part: Part | None = None) -> Program: ...


class Sampling(Forecaster):
    """The mode of a module inside ``sampling(schedule)``."""

    _spec: TreeSpec

    def __init__(self, host: Host, schedule: Schedule) -> None:
        super().__init__(schedule)
        self._host = host

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        try:
            return self._called(call, dense)
        except BaseException:
            self.forget()
            raise

    def _called(self, call: Call, dense: Callable[[], Any]) -> Any:
        place = self.tick(call)
        made = self.forecast_at(place, call)
        if self.schedule.reuse != "output":
            return self._partly(place, call, made)
        if made is not None:
            return tree_unflatten(made, self._spec)
        output = dense()
        leaves, self._spec = tree_flatten(output)
        self.keep(place, call, leaves)
        return output

    def _partly(self, place: tuple[int, int], call: Call, made: list[Any] | None) -> Any:
        """The model, or what is left of it around the values ``made``."""
        assert self.schedule.reuse != "output"
        program = self._host.program(call, self.schedule.reuse)
        if made is not None:
            return program.reuse_step(call, made)
        output, values = program.key_step(call)
        self.keep(place, call, values)
        return output
