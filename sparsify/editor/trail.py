"""The latents that a sampler goes through, step by step, and those that an edit goes back to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..codegen.errors import SessionError
from ..forecast import numbered
from ..scope import Scope
from .lattice import Lattice

Begin = Callable[[float, Tensor], Tensor]
"""(timestep of a step, the latents that it was given) -> those that it is given instead."""


@dataclass
class Trail:
    """Of a whole run."""

    times: list[float] = field(default_factory=list)
    latents: list[Tensor] = field(default_factory=list)
    """After each step of the scheduler, at these timesteps."""

    def seen(self, time: float, latents: Tensor) -> Tensor:
        self.times.append(time)
        self.latents.append(latents.clone())
        return latents

    @property
    def steps(self) -> int:
        """The two calls of a second-order solver share a timestep, and count as one step."""
        return numbered(self.times)[-1] + 1 if self.times else 0


class EditedTrail(Trail):
    """Of an edited run: outside of the mask it goes through the recorded latents."""

    def __init__(
        self,
        recorded: Trail,
        scope: Scope,
        lattice: Lattice,
        is_exact: bool,
        begin: Begin | None = None,
    ) -> None:
        """A late start goes on with what ``begin`` makes of the recorded latents. Under
        policy "exact" what was edited may spread, so that nothing is put back."""
        super().__init__()
        self._recorded, self._scope, self._lattice = recorded, scope, lattice
        self.is_exact, self._begin = is_exact, begin
        self._steps, self._position = numbered(recorded.times), 0

    def seen(self, time: float, latents: Tensor) -> Tensor:
        number, scope = self._twin(time), self._scope
        step, old = self._steps[number], self._recorded.latents[number]
        if step < scope.start:
            latents = old.clone()
            if self._steps[number + 1] == scope.start and self._begin is not None:
                begun = self._begin(self._recorded.times[number + 1], old)
                latents = self._inside(begun, old, scope.start)
        elif scope.is_known and not self.is_exact:
            latents = self._inside(latents, old, step)
        if not self.times:  # what comes before a late start is as it was
            self.times[:] = self._recorded.times[:number]
            self.latents[:] = self._recorded.latents[:number]
        self._position = number + 1
        return super().seen(time, latents)

    @property
    def is_over(self) -> bool:
        """Were all steps made?"""
        return self._position == len(self._recorded.times)

    def _inside(self, new: Tensor, old: Tensor, step: int) -> Tensor:
        return self._lattice.blended(self._scope.mask_at(step), new, old)

    def _twin(self, time: float) -> int:
        end = len(self._recorded.times)
        if self.times:  # only the first may come late
            end = min(self._position + 1, end)
        for number in range(self._position, end):
            if self._recorded.times[number] == time:
                return number
        raise SessionError(
            f"the scheduler made a step at {time:g}, which the recorded run did not make after "
            f"{self._position} steps: edit with the same scheduler and number of steps"
        )
