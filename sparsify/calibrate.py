"""Finds a schedule for a sampler: from one full run, checked by further ones."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .codegen.errors import ConfigError, SessionError, SparsifyWarning
from .fit import Fit
from .forecast import picture_of
from .host import Host
from .passes.parts import Part
from .sampling import Sampling
from .schedule import Schedule
from .signature import Call
from .watching import Watching

RUNS = 3
"""A calibration costs at most as much as these many full runs."""
_TERMS = (2, 3)
"""Of a forecast."""


def calibrate(
    host: Host,
    run: Callable[[], Any],
    calls: int | None,
    psnr: float | None,
    longest: int | None,
    reuse: Part,
) -> Schedule:
    """See :meth:`SparseModule.calibrate`."""
    if (calls is None) == (psnr is None):
        raise ConfigError("give either calls, a number of steps that call the model, or psnr in dB")
    with Progress(transient=True) as progress:
        return _Calibration(host, run, progress, reuse).schedule(calls, psnr, longest)


class _Calibration:
    """A full run, and what is measured against it."""

    def __init__(self, host: Host, run: Callable[[], Any], progress: Progress, reuse: Part) -> None:
        self._host, self._run, self._progress, self._reuse = host, run, progress, reuse
        task = progress.add_task("full run", total=None)
        self._watched = watched = Watching(host, reuse, lambda: progress.advance(task))
        with host.mode_of(watched):
            self._pictures = _pictures(run())
        if len(watched.times) < 2:
            raise SessionError(
                f"`run` made {len(watched.times)} steps with this module: let it sample once"
            )
        watched.require_no_noise()
        self.steps = len(watched.times)
        self._spent = self.steps
        """Steps that called the model so far; those of a part count as whole ones."""
        self._fit = Fit(watched.values())

    def schedule(self, calls: int | None, psnr: float | None, longest: int | None) -> Schedule:
        if calls is not None:
            return self._best(calls, longest)
        assert psnr is not None
        return self._reaching(psnr, longest)

    def _best(self, calls: int, longest: int | None) -> Schedule:
        """Of those whose forecasts have two terms, and three: with few calls what a third adds is
        more noise than it takes away, which only a run tells."""
        made = [self._made(calls, longest, terms) for terms in _TERMS]
        if made[0].rows == made[1].rows or self._spent + 2 * self._cost(calls) > RUNS * self.steps:
            return self._measured(made[0])
        return max(map(self._measured, made), key=lambda one: one.psnr or 0.0)

    def _made(self, calls: int, longest: int | None, terms: int = _TERMS[0]) -> Schedule:
        if not 1 <= calls <= self.steps:
            raise ConfigError(f"calls={calls} of {self.steps} steps")
        rows = self._fit.rows(calls, longest, terms)
        return Schedule(rows, self._reuse, timesteps=tuple(self._watched.times))

    def _measured(self, schedule: Schedule) -> Schedule:
        """The same, with the PSNR of a run by it to the full run."""
        task = self._progress.add_task(f"{len(schedule.keys)} calls", total=self.steps)
        checked = _Checked(self._host, schedule, self._watched.first)
        with self._host.mode_of(checked):
            got = _pictures(self._run())
        self._spent += self._cost(len(schedule.keys))
        self._progress.update(task, completed=self.steps)
        return replace(schedule, psnr=_psnr(got, self._pictures))

    def _cost(self, calls: int) -> int:
        return calls if self._reuse == "output" else self.steps

    def _reaching(self, psnr: float, longest: int | None) -> Schedule:
        """The one with the fewest calls that was seen to reach ``psnr``.

        What the fit leaves over predicts the PSNR up to a constant, which each check tells anew.
        """
        tried: dict[int, Schedule] = {}
        calls = max(2, self.steps // 5)
        while calls not in tried and self._spent + self._cost(calls) <= RUNS * self.steps:
            tried[calls] = self._measured(self._made(calls, longest))
            calls = self._promising({c: one.psnr or 0.0 for c, one in tried.items()}, psnr, longest)
        reached = [c for c, one in tried.items() if (one.psnr or 0.0) >= psnr]
        if reached:
            return tried[min(reached)]
        warnings.warn(
            f"no schedule of {self.steps} steps was seen to reach {psnr:g} dB: every step calls "
            "the model",
            SparsifyWarning,
            stacklevel=4,
        )
        return replace(self._made(self.steps, longest), psnr=math.inf)

    def _promising(self, tried: Mapping[int, float], psnr: float, longest: int | None) -> int:
        """The fewest calls that may reach ``psnr``, by what is known of others."""
        short = max((c for c, reached in tried.items() if reached < psnr), default=1)
        enough = min((c for c, reached in tried.items() if reached >= psnr), default=self.steps)
        near = min(tried, key=lambda c: abs(tried[c] - psnr))
        constant = tried[near] - self._fit.decibels(near, longest)
        between = range(short + 1, enough)
        found = (c for c in between if self._fit.decibels(c, longest) + constant >= psnr)
        return next(found, enough)


class _Checked(Sampling):
    """Refuses a run from other noise than the full one."""

    def __init__(self, host: Host, schedule: Schedule, first: Tensor | None) -> None:
        super().__init__(host, schedule)
        self._wanted: Tensor | None = first

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        first = picture_of(call) if self._wanted is not None else None
        if self._wanted is not None and first is not None and not torch.equal(self._wanted, first):
            raise SessionError(
                "`run` begins from other noise each time, so runs cannot be compared: give it a "
                "generator with a fixed seed, made inside of it"
            )
        self._wanted = None
        return super().call(call, dense)


def _pictures(result: Any) -> list[np.ndarray[Any, Any]]:
    """What ``run`` returned, as arrays: tensors, arrays, PIL images, outputs of a pipeline."""
    found = [
        x.detach().float().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
        for x in tree_leaves(getattr(result, "images", result))
        if x is not None
    ]
    arrays = [x.astype(np.float64) for x in found if x.dtype.kind in "fiu" and x.ndim > 1]
    if not arrays:
        raise ConfigError("`run` has to return the pictures, as tensors, arrays or PIL images")
    return arrays


def _psnr(got: Sequence[np.ndarray[Any, Any]], want: Sequence[np.ndarray[Any, Any]]) -> float:
    """In dB, by the range of the pictures that are wanted."""
    errors = [np.square(a - b).mean() for a, b in zip(got, want, strict=True)]
    mean = float(np.mean(errors))
    span = max(float(picture.max() - picture.min()) for picture in want)
    return math.inf if mean == 0 else 20 * math.log10(span or 1.0) - 10 * math.log10(mean)
