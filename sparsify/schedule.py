"""Which steps of a sampling run call the model, and how the others are forecast."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from .codegen.errors import ConfigError
from .passes.parts import Part, require_part
from .published import published
from .rows import Row, rows_at, rows_every

_CELL, _MARGIN = 16, 6
_KEY, _FORECAST, _LINE = (28, 100, 180), (205, 222, 240), (28, 100, 180)


@dataclass(frozen=True)
class Schedule:
    """Plain data: a forecast is a fixed linear combination of what key steps gave.

    A schedule is made by :meth:`every`, :meth:`at`, :meth:`published` or
    :meth:`SparseModule.calibrate`. Raises :class:`ConfigError` for one that no run could follow.
    """

    rows: tuple[Row, ...]
    """One for each step."""
    reuse: Part = "output"
    """What is forecast: "output", and then the model is not called at all; or a part of it
    (:func:`.passes.parts.reused`), and then the rest is computed."""
    timesteps: tuple[float, ...] | None = None
    """Those that it was calibrated for; None: steps are counted."""
    psnr: float | None = None
    """Of the calibrated run to the full one, in dB."""

    def __post_init__(self) -> None:
        if self.part is not None:
            require_part(self.part)
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
    def every(count: int, steps: int, order: int = 0, reuse: Part = "output") -> Schedule:
        """Calls the model at every ``count``-th step, from the first."""
        return Schedule(rows_every(count, steps, order), reuse)

    @staticmethod
    def at(keys: Iterable[int], steps: int, order: int = 0, reuse: Part = "output") -> Schedule:
        """Calls the model at the steps ``keys``, counted from 0.

        A forecast is the polynomial of degree ``order`` (0, 1, 2) through the last key steps: 0
        holds the last value, 1 goes on along a line. Before there are so many it has fewer.
        """
        return Schedule(rows_at(keys, steps, order), reuse)

    @staticmethod
    def published(name: str, steps: int, **options: object) -> Schedule:
        """That of a published method (:func:`sparsify.published.published` lists them), such as
        ``Schedule.published("deepcache", 50, interval=5)``."""
        return Schedule(*published(name, steps, **options))

    def for_timesteps(self, timesteps: Iterable[float]) -> Schedule:
        """The same for runs with these timesteps (``scheduler.timesteps``), as the model takes
        them. Steps are then known by them, so a run may start late."""
        return replace(self, timesteps=tuple(map(float, timesteps)))

    @property
    def part(self) -> Part | None:
        """What is forecast, unless it is the output."""
        return None if self.reuse == "output" else self.reuse

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
        """Raises :class:`ConfigError` if a function says what is reused."""
        if callable(self.reuse):
            raise ConfigError("a function cannot be written: reuse a part by name, or by patterns")
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Schedule:
        """Raises :class:`ConfigError` for anything else than :meth:`to_json` gave."""
        try:
            content = json.loads(text)
            rows = tuple(tuple((int(k), float(w)) for k, w in row) for row in content["rows"])
            timesteps, psnr = content["timesteps"], content["psnr"]
            own = None if timesteps is None else tuple(map(float, timesteps))
            reuse: Any = content["reuse"]
            reuse = tuple(map(str, reuse)) if isinstance(reuse, list) else str(reuse)
            return Schedule(rows, reuse, own, None if psnr is None else float(psnr))
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
