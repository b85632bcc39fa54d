"""A run of a pipeline while it is recorded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..schedule import Schedule
from ..session import Recording, Session
from ..signature import Call
from .decoders import RecordingOrDense
from .trail import Trail


@dataclass
class Run:
    """What a scheduler has done so far."""

    trail: Trail = field(default_factory=Trail)
    decoders: list[RecordingOrDense] = field(default_factory=list)

    def seen(self, time: float, latents: Tensor) -> Tensor:
        for mode in self.decoders:
            mode.forget()
        return self.trail.seen(time, latents)


class StepRecording(Recording):
    """The mode of a model that is called at steps of a run, perhaps not at the first ones."""

    def __init__(self, session: Session, schedule: Schedule | None, trail: Trail) -> None:
        super().__init__(session, schedule)
        self.first_step, self._trail = 0, trail

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        if not self.session.calls:
            self.first_step = self._trail.steps
        return super().call(call, dense)
