"""Sampling by a schedule: key steps call the model, the others take what is forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .ahead import Ahead
from .codegen.errors import SessionError
from .forecast import Forecaster
from .host import Host
from .passes.parts import Part
from .run_report import RunReport
from .schedule import Schedule
from .signature import Call


class Sampling(Forecaster):
    """The mode of a module inside ``sampling(schedule)``."""

    _spec: TreeSpec

    def __init__(self, host: Host, schedule: Schedule, ahead: int = 1) -> None:
        super().__init__(schedule)
        self._host = host
        self._last: Call | None = None
        self._ahead = Ahead(host, schedule, ahead) if ahead > 1 else None

    def report(self) -> RunReport:
        """What the last run computed. Raises :class:`SessionError` if there was none."""
        if self._last is None:
            raise SessionError("nothing was sampled yet: run the sampler inside sampling()")
        program = self._host.program(self._last, self.schedule.part)
        return RunReport(program.runtime.report(None), self.schedule, tuple(self.calls))

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        self._last = call
        try:
            part = self.schedule.part
            return self._whole(call, dense) if part is None else self._partly(call, part)
        except BaseException:
            self.forget()
            raise

    def _whole(self, call: Call, dense: Callable[[], Any]) -> Any:
        def key() -> tuple[Any, list[Any]]:
            output = dense()
            leaves, self._spec = tree_flatten(output)
            return output, leaves

        return self.run(call, key, lambda leaves: tree_unflatten(leaves, self._spec))

    def _partly(self, call: Call, part: Part) -> Any:
        program = self._host.program(call, part)

        def reuse(taken: list[Tensor]) -> Any:
            if self._ahead is None:
                return program.step(call, taken)[0]
            number = self.place[1]
            return self._ahead.output(
                self.place, call, program, lambda step: self.made_of(step, number)
            )

        return self.run(call, lambda: program.step(call, None), reuse)

    def begin(self) -> None:
        if self._ahead is not None:
            self._ahead.forget()
