"""Steps as rows of weights: key steps, and forecasts from those before."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .codegen.errors import ConfigError

Row = tuple[tuple[int, float], ...]
"""(key step, weight) of each term of a forecast; of a key step itself, with weight 1."""


def rows_every(count: int, steps: int, order: int = 0) -> tuple[Row, ...]:
    """Key steps are every ``count``-th, from the first. Raises :class:`ConfigError`."""
    if count < 1:
        raise ConfigError(f"every {count} steps: give a number of at least 1")
    return rows_at(range(0, steps, count), steps, order)


def rows_at(keys: Iterable[int], steps: int, order: int = 0) -> tuple[Row, ...]:
    """Forecasts are the polynomial of degree ``order`` through the last key steps, or of a lower
    one while there are fewer. Raises :class:`ConfigError`."""
    if order not in (0, 1, 2):
        raise ConfigError(f"order={order}: one of 0, 1, 2")
    given = sorted(set(keys))
    if given and not 0 <= given[0] <= given[-1] < steps:
        raise ConfigError(f"keys {given[0]} to {given[-1]} of {steps} steps, counted from 0")
    rows = list[Row]()
    for step in range(steps):
        last = [key for key in given if key <= step][-order - 1 :]
        rows.append(((step, 1.0),) if step in given else _through(last, step))
    return tuple(rows)


def _through(keys: Sequence[int], step: int) -> Row:
    """The polynomial through the values at ``keys``, at ``step`` (Lagrange)."""
    return tuple(
        (key, math.prod((step - other) / (key - other) for other in keys if other != key))
        for key in keys
    )
