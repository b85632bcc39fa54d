"""What a scheduler makes of each step, seen and, where an edit says so, replaced."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .clean import clean_latents

Seen = Callable[[float, Tensor], Tensor]
"""(timestep, latents after its step) -> those that the sampler goes on with."""
Predicted = Callable[[Tensor], None]
"""Is told the clean latents that the output of a step's model predicts."""


@contextmanager
def watched(scheduler: Any, seen: Seen, predicted: Predicted | None = None) -> Iterator[None]:
    """Inside, all that ``scheduler.step`` gives goes through ``seen``.

    The scheduler is of a subclass for that time, so that a copy that a pipeline makes of it has a
    step of its own.
    """
    kind = type(scheduler)
    parameters = inspect.signature(kind.step)

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not scheduler:
            return kind.step(self, *args, **kwargs)
        given = parameters.bind(self, *args, **kwargs).arguments
        if predicted is not None:  # before the scheduler counts on
            own = (given[name] for name in ("timestep", "sample", "model_output"))
            predicted(clean_latents(self, *own))
        made = kind.step(self, *args, **kwargs)
        time = float(given["timestep"])
        if isinstance(made, tuple):
            return (seen(time, made[0]), *made[1:])
        made.prev_sample = seen(time, made.prev_sample)
        return made

    about = {name: getattr(kind, name) for name in ("__module__", "__qualname__", "__doc__")}
    scheduler.__class__ = type(kind.__name__, (kind,), {**about, "step": step})
    try:
        yield
    finally:
        scheduler.__class__ = kind
