"""Key steps by a shortest path over measured forecast errors, weights by least squares."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .codegen.errors import ConfigError
from .rows import Row

_RIDGE = 1e-6
"""Pulls the weights to those that hold the last value, relative to the size of the values."""


class Fit:
    """Forecasts of each step of a run from two earlier ones.

    ``outputs`` float [steps, values] are what the steps gave. All errors follow from their
    products with each other.
    """

    def __init__(self, outputs: Tensor) -> None:
        self.steps = len(outputs)
        wide = outputs.double()
        self._products = wide @ wide.T / wide.shape[1]
        errors = self._pairs()
        sums = torch.cat([errors.new_zeros(self.steps, self.steps, 1), errors.cumsum(2)], 2)
        self._sums: list[list[list[float]]] = sums.tolist()
        self._paths: dict[tuple[int | None, int], tuple[float, tuple[int, ...]]] = {}

    def _pairs(self) -> Tensor:
        """The mean squares of what forecasts from the last two keys leave over, [before, last,
        step]; ``before`` is ``last`` where there is only one key."""
        products, count = self._products, self.steps
        first = products.diagonal()[:, None].expand(count, count)  # of `before` with itself
        last = products.diagonal()[None, :].expand(count, count)
        both = products
        ridge = _RIDGE * last + 1e-30
        # (A + ridge) w = b + ridge * (0, 1)
        b0 = products[:, None, :].expand(count, count, count)
        b1 = products[None, :, :].expand(count, count, count)
        a00, a11, a01 = (x[..., None] for x in (first + ridge, last + ridge, both))
        right = b1 + ridge[..., None]
        determinant = a00 * a11 - a01 * a01
        w0 = (a11 * b0 - a01 * right) / determinant
        w1 = (a00 * right - a01 * b0) / determinant
        one = torch.eye(count, dtype=torch.bool)[..., None]
        w0 = torch.where(one, 0.0, w0)
        w1 = torch.where(one, right / a11, w1)
        squares = products.diagonal()
        left = squares - 2 * (w0 * b0 + w1 * b1) + w0 * w0 * first[..., None]
        left = left + w1 * w1 * last[..., None] + 2 * w0 * w1 * both[..., None]
        return left.clamp(min=0)

    def rows(self, calls: int, longest: int | None = None, terms: int = 2) -> tuple[Row, ...]:
        """Of the schedule with ``calls`` keys that leaves the least over, none of which is more
        than ``longest`` steps behind the one before, by default twice the mean distance. A forecast
        has up to so many ``terms``. Raises :class:`ConfigError` if there is none."""
        keys = self._path(calls, longest)[1]
        return tuple(self._row(step, keys, terms) for step in range(self.steps))

    def _row(self, step: int, keys: tuple[int, ...], terms: int) -> Row:
        if step in keys:
            return ((step, 1.0),)
        known = [key for key in keys if key < step][-terms:]
        products = self._products[known][:, known]
        # (A + ridge) w = b + ridge * (0, ..., 1): what holds the last value, unless more is gained.
        ridge = _RIDGE * products.diagonal() + 1e-30
        right = self._products[known, step].clone()
        right[-1] += ridge[-1]
        weights = torch.linalg.solve(products + ridge.diag(), right).tolist()
        return tuple(zip(known, weights, strict=True))

    def decibels(self, calls: int, longest: int | None = None) -> float:
        """What the best schedule of so many calls leaves over, as a PSNR but for a constant."""
        return -10 * math.log10(max(self._path(calls, longest)[0], 1e-30))

    def _path(self, calls: int, longest: int | None) -> tuple[float, tuple[int, ...]]:
        """The error and the keys, by dynamic programming over the last two keys."""
        if (longest, calls) not in self._paths:
            self._search(longest or max(1, math.ceil(2 * self.steps / calls)), calls, longest)
        return self._paths[longest, calls]

    def _search(self, gap: int, calls: int, longest: int | None) -> None:
        count = self.steps

        def between(before: int, last: int, end: int) -> float:
            """What the steps after key ``last`` and before ``end`` leave over."""
            sums = self._sums[before][last]
            return sums[end] - sums[last + 1]

        # (before, last) -> (error so far, keys); at first the key is alone.
        best: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {(0, 0): (0.0, (0,))}
        for _ in range(calls - 1):
            found: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
            for (before, last), (error, keys) in best.items():
                for key in range(last + 1, min(last + gap, count - 1) + 1):
                    total = error + between(before, last, key)
                    if total < found.get((last, key), (math.inf,))[0]:
                        found[last, key] = total, (*keys, key)
            best = found
        ends = [
            (error + between(before, last, count), keys)
            for (before, last), (error, keys) in best.items()
            if count - last <= gap
        ]
        if not ends:
            raise ConfigError(f"{calls} calls cannot be at most {gap} apart in {count} steps")
        self._paths[longest, calls] = min(ends)
