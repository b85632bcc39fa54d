"""Which steps of a sampling run call the model, and how the others are forecast."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

from PIL import Image, ImageDraw

from .codegen.errors import ConfigError
from .passes.reuse import Part

Reused = Literal["output"] | Part
Row = tuple[tuple[int, float], ...]
"""(key step, weight) of each term of a forecast; of a key step itself, with weight 1."""

REUSED: tuple[str, ...] = ("output", *get_args(Part))
_CELL, _MARGIN = 16, 6
_KEY, _FORECAST, _LINE = (28, 100, 180), (205, 222, 240), (28, 100, 180)


@dataclass(frozen=True)
class Schedule:
    """Plain data: a forecast is a fixed linear combination of what key steps gave.

    A schedule is made by :meth:`every`, :meth:`at` or :meth:`SparseModule.calibrate`. Raises
    :class:`ConfigError` for one that no run could follow.
    """

    rows: tuple[Row, ...]
    """One for each step."""
    reuse: Reused = "output"
    """What is forecast: the model's output, and then it is not called; or the values between a part
    of it and the rest, which is computed."""
    timesteps: tuple[float, ...] | None = None
    """Those that it was calibrated for; None: steps are counted."""
    psnr: float | None = None
    """Of the calibrated run to the full one, in dB."""

    def __post_init__(self) -> None:
        if self.reuse not in REUSED:
            raise ConfigError(f"reuse={self.reuse!r}: one of {', '.join(REUSED)}")
        if not self.rows or 0 not in self.keys:
            raise ConfigError("the first step of a schedule has to call the model")
        for step, row in enumerate(self.rows):
            for key, weight in row:
                if key > step or key not in self.keys or not math.isfinite(weight):
                    raise ConfigError(
                        f"step {step} cannot take {weight} times step {key}: "
                        "forecasts are made of earlier steps that call the model"
                    )
        if self.timesteps is not None and len(self.timesteps) != self.steps:
            raise ConfigError(f"{len(self.timesteps)} timesteps for {self.steps} steps")

    @staticmethod
    def every(count: int, steps: int, order: int = 0, reuse: Reused = "output") -> Schedule:
        """Calls the model at every ``count``-th step, from the first."""
        if count < 1:
            raise ConfigError(f"every {count} steps: give a number of at least 1")
        return Schedule.at(range(0, steps, count), steps, order, reuse)

    @staticmethod
    def at(keys: Iterable[int], steps: int, order: int = 0, reuse: Reused = "output") -> Schedule:
        """Calls the model at the steps ``keys``, counted from 0.

        A forecast is the polynomial of degree ``order`` (0, 1, 2) through the last key steps: 0
        holds the last value, 1 goes on along a line. Before there are so many it has fewer.
        """
        if order not in (0, 1, 2):
            raise ConfigError(f"order={order}: one of 0, 1, 2")
        given = sorted(set(keys))
        if given and not 0 <= given[0] <= given[-1] < steps:
            raise ConfigError(f"keys {given[0]} to {given[-1]} of {steps} steps, counted from 0")
        rows = []
        for step in range(steps):
            last = [key for key in given if key <= step][-order - 1 :]
            rows.append(((step, 1.0),) if step in given else _through(last, step))
        return Schedule(tuple(rows), reuse)

    @property
    def steps(self) -> int:
        return len(self.rows)

    @cached_property
    def keys(self) -> tuple[int, ...]:
        """The steps that call the model."""
        return tuple(step for step, row in enumerate(self.rows) if row == ((step, 1.0),))

    @cached_property
    def last_reader(self) -> dict[int, int]:
        """Of each key step: the last step that is forecast from it."""
        return {key: step for step, row in enumerate(self.rows) for key, _ in row}

    def __str__(self) -> str:
        """A strip of steps: full blocks call the model."""
        strip = "".join("█" if step in self.keys else "░" for step in range(self.steps))
        said = "" if self.psnr is None else f", {self.psnr:.1f} dB"
        return f"{strip} {len(self.keys)} of {self.steps} steps{said}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Schedule:
        """Raises :class:`ConfigError` for anything else than :meth:`to_json` gave."""
        try:
            content = json.loads(text)
            rows = tuple(tuple((int(k), float(w)) for k, w in row) for row in content["rows"])
            timesteps, psnr = content["timesteps"], content["psnr"]
            own = None if timesteps is None else tuple(map(float, timesteps))
            return Schedule(rows, content["reuse"], own, None if psnr is None else float(psnr))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"this is no schedule ({error})") from None

    def save(self, path: str | Path) -> None:
        Path(path).write_text(self.to_json() + "\n")

    @staticmethod
    def load(path: str | Path) -> Schedule:
        """Raises :class:`ConfigError`."""
        try:
            return Schedule.from_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} cannot be read ({error})") from None

    def picture(self, path: str | Path) -> None:
        """Draws a strip of steps: dark ones call the model, and lines lead from them to what is
        forecast of them, the wider the larger the weight."""
        width, height = self.steps * _CELL + 2 * _MARGIN, 6 * _CELL
        image = Image.new("RGB", (width, height), "white")
        draw = ImageDraw.Draw(image)
        top = height - _CELL - _MARGIN
        for step, row in enumerate(self.rows):
            left = _MARGIN + step * _CELL
            colour = _KEY if step in self.keys else _FORECAST
            draw.rectangle((left + 1, top, left + _CELL - 2, top + _CELL), fill=colour)
            for key, weight in row if step not in self.keys else ():
                start, rise = _MARGIN + key * _CELL, min(top - _MARGIN, (step - key) * _CELL)
                box = (start + _CELL // 2, top - rise, left + _CELL // 2, top + rise)
                draw.arc(box, 180, 360, fill=_LINE, width=1 + min(3, round(abs(weight))))
        image.save(path)


def _through(keys: Sequence[int], step: int) -> Row:
    """The polynomial through the values at ``keys``, at ``step`` (Lagrange)."""
    return tuple(
        (key, math.prod((step - other) / (key - other) for other in keys if other != key))
        for key in keys
    )
