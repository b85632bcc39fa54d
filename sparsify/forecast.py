"""Follows a sampling run by a schedule: which step a call is, and what a forecast is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from .codegen.errors import SessionError
from .schedule import Schedule
from .signature import Call, Signature, is_number

Result = TypeVar("Result")
CLOCKS = frozenset(("timestep", "timesteps", "t", "sigma", "sigmas", "time", "noise_level"))
"""Names of arguments that tell the step."""
MOST_CALLS = 8
"""Of one step: guidance makes two, and a solver of second order two of each."""


class Clock:
    """Tells the step of a call by its timestep, and which of the calls of that step it is.

    Calls with the timestep of the one before are of the same step: guidance in two calls, solvers
    with two calls a step. A timestep that turns back is the first of a new run, and so is another
    picture at the first step: a run was broken off there. No step makes fewer calls than the one
    before it.
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self.started: int | None = None
        """The first step of this run."""
        self.time, self._rises = 0.0, _rises(schedule)
        self._step = self._number = self._calls = 0
        self._picture: Tensor | None = None

    def tick(self, call: Call) -> tuple[int, int]:
        """(step, number among the calls of this step). Raises :class:`SessionError` for a call
        whose step the schedule does not know."""
        time = time_of(call)
        if self._is_of_this_step(call, time):
            self._number += 1
        elif self.started is not None and self._goes_on(time):
            self._enter(self._next(time), time)
        else:
            self._rises = _rises(self._schedule)
            step = self._next(time) if self._schedule.timesteps is not None else 0
            picture = picture_of(call)
            self._picture = None if picture is None else picture.clone()
            self.started, self._calls = step, 0
            self._enter(step, time)
        return self._step, self._number

    def forget(self) -> None:
        """The run was broken off."""
        self.started = None

    def _is_of_this_step(self, call: Call, time: float) -> bool:
        if self.started is None or time != self.time or self._number + 1 >= MOST_CALLS:
            return False
        if self._step != self.started:
            return True
        old, new = self._picture, picture_of(call)
        return old is None or new is None or torch.equal(old, new)

    def _goes_on(self, time: float) -> bool:
        if time == self.time:
            return False
        rises = time > self.time
        if self._rises is None:
            self._rises = rises
        return rises == self._rises

    def _next(self, time: float) -> int:
        """The step of a timestep that none had in this run."""
        known = self._schedule.timesteps
        if known is not None:
            near = min(range(len(known)), key=lambda step: abs(known[step] - time))
            if abs(known[near] - time) > 1e-4 * max(1.0, abs(time)):
                raise SessionError(
                    f"the run has the timestep {time:g}, the nearest that the schedule was "
                    f"calibrated for is {known[near]:g} (step {near}): calibrate with this sampler"
                )
            return near
        step = self._step + 1
        if step >= self._schedule.steps:
            raise SessionError(
                f"the run has more steps than the {self._schedule.steps} of its schedule: make "
                "one for as many steps"
            )
        return step

    def _enter(self, step: int, time: float) -> None:
        if step != self.started and self._number + 1 < self._calls:
            raise SessionError(
                f"step {self._step} made {self._number + 1} calls, the one before {self._calls}: a "
                "run was broken off; begin the next one in a context of its own"
            )
        self._calls = 0 if step == self.started else self._number + 1
        self._step, self._number, self.time = step, 0, time


class Forecaster:
    """What the key steps of a run gave, and the forecasts made of it."""

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule
        self._clock = Clock(schedule)
        self._known: dict[int, dict[int, tuple[Signature, list[Any]]]] = {}
        """By the number of the call among those of its step, and by step."""
        self.called = self.forecast = 0
        self.calls: list[tuple[int, bool]] = []
        """Of the last run: (step, was it a key step)."""
        self.place = (0, 0)
        """Of the last call: (step, number among the calls of this step)."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.called} calls, {self.forecast} forecast>"

    def forget(self) -> None:
        """The run was broken off."""
        self._clock.forget()

    def run(
        self,
        call: Call,
        key: Callable[[], tuple[Result, Sequence[Any]]],
        reuse: Callable[[list[Any]], Result],
    ) -> Result:
        """What a call gives: at key steps that of ``key``, which also gives what others may take
        over; else that of ``reuse``, from what is forecast of it."""
        self.place = place = self.tick(call)
        made = self.forecast_at(place, call)
        self.calls.append((place[0], made is None))
        if made is not None:
            return reuse(made)
        result, leaves = key()
        self.keep(place, call, leaves)
        return result

    def tick(self, call: Call) -> tuple[int, int]:
        """The place of a call: (step, number among the calls of this step)."""
        started = self._clock.started
        step, number = place = self._clock.tick(call)
        if started is None or (step == self._clock.started and number == 0):
            self._known.clear()
            self.calls.clear()
            self.begin()
        return place

    def begin(self) -> None:
        """Another run."""

    def forecast_at(self, place: tuple[int, int], call: Call) -> list[Any] | None:
        """The forecast leaves, or None where the model has to be called: at key steps, and where a
        key step was not part of the run, or had inputs of other shapes."""
        if not self._is_known(place, call):
            return None
        self.forecast += 1
        return self.made_of(*place)

    def made_of(self, step: int, number: int) -> list[Any]:
        """The forecast leaves of a step whose key steps are known."""
        row, known = self.schedule.rows[step], self._known[number]
        values, weights = [known[key][1] for key, _ in row], [weight for _, weight in row]
        return [weighed(leaves, weights) for leaves in zip(*values, strict=True)]

    def _is_known(self, place: tuple[int, int], call: Call) -> bool:
        step, number = place
        row, known = self.schedule.rows[step], self._known.get(number, {})
        form = call.with_tensors.signature
        is_key = step in self.schedule.keys
        return not is_key and all(known.get(key, (None,))[0] == form for key, _ in row)

    def keep(self, place: tuple[int, int], call: Call, leaves: Sequence[Any]) -> None:
        """What the model gave for ``call`` at ``place``; the caller may write to it afterwards."""
        step, number = place
        self.called += 1
        known, last = self._known.setdefault(number, {}), self.schedule.last_reader
        for key in [key for key in known if last[key] <= step]:
            del known[key]
        if step in last and last[step] > step:
            own = [x.detach().clone() if isinstance(x, Tensor) else x for x in leaves]
            known[step] = call.with_tensors.signature, own


def picture_of(call: Call) -> Tensor | None:
    """The first input that is no vector."""
    return next((x.detach() for x in call.leaves if isinstance(x, Tensor) and x.dim() > 1), None)


def weighed(values: Sequence[Any], weights: Sequence[float]) -> Any:
    """Weighted, in float32 at least; what no sum can be made of is the last one."""
    last = values[-1]
    if not isinstance(last, Tensor) or not last.is_floating_point():
        return last.clone() if isinstance(last, Tensor) else last
    wide = torch.promote_types(last.dtype, torch.float32)
    if list(weights) == [1.0]:
        return last.clone()
    total = sum(w * x.to(wide) for w, x in zip(weights, values, strict=True))
    assert isinstance(total, Tensor)
    return total.to(last.dtype)


def _rises(schedule: Schedule) -> bool | None:
    """Do its timesteps go up? None where the first two of a run tell."""
    times = schedule.timesteps
    return None if times is None or len(times) < 2 else times[-1] > times[0]


def clock_of(signature: Signature, leaves: Sequence[Any]) -> int:
    """The place of the timestep among the inputs: of one with this name, or of the first number.
    Raises :class:`SessionError` if there is none."""
    names = [name.split("[")[0] for name in signature.names]
    for place, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
        if name in CLOCKS and (is_number(leaf) or (isinstance(leaf, Tensor) and leaf.numel())):
            return place
    for place, leaf in enumerate(leaves):
        if is_number(leaf) or (isinstance(leaf, Tensor) and leaf.dim() < 2 and leaf.numel()):
            return place
    raise SessionError("no input of this call is a number, so none tells the step of the run")


def time_of(call: Call) -> float:
    """The timestep. Raises as :func:`clock_of`."""
    return _time(call.signature, call.leaves)


def steps_of(calls: Sequence[tuple[Signature, Sequence[Any]]]) -> list[int]:
    """The step of each call of a run, given its inputs: those of one timestep in a row are one.
    Raises as :func:`clock_of`."""
    return numbered([_time(*call) for call in calls])


def numbered(times: Sequence[float]) -> list[int]:
    """The step of each of these timesteps: a repeated one is of the same step."""
    begins = (new != old for old, new in pairwise(times))
    return list(accumulate(begins, initial=0))[: len(times)]


def _time(signature: Signature, leaves: Sequence[Any]) -> float:
    leaf = leaves[clock_of(signature, leaves)]
    # Of tokens with times of their own, some may be those of a picture that is given.
    return float(leaf.max()) if isinstance(leaf, Tensor) else float(leaf)
