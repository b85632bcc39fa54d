"""The schedules of published methods: their key steps, and how they forecast the others."""

from __future__ import annotations

from collections.abc import Callable, Collection
from fractions import Fraction
from inspect import signature
from itertools import cycle, zip_longest
from math import factorial

import numpy as np

from .codegen.errors import ConfigError
from .passes.parts import Part
from .rows import Row, rows_at, rows_every

Rows = tuple[tuple[Row, ...], Part]
"""Of a schedule: its rows, and what is reused."""

_FASTER_DIFFUSION: dict[int, dict[str, tuple[int, ...]]] = {
    20: {"20ls": (0, 1, 2, 3, 5, 10, 15)},
    50: {
        "50ls": (0, 1, 2, 3, 5, 10, 15, 25, 35),
        "50ls2": (0, 10, 11, 12, 15, 20, 25, 30, 35, 45),
        "50ls3": (0, 20, 25, 30, 35, 45, 46, 47, 48, 49),
        "50ls4": (0, 9, 13, 14, 15, 28, 29, 32, 36, 45),
        "s2": (*range(20), *range(20, 41, 2), *range(41, 50)),
    },
    75: {
        "75ls": (*range(10), *range(10, 66, 5), *range(66, 75)),
        "75ls2": (0, 1, 2, 3, 5, 10, 15, 25, 35, 45, 55, 65),
    },
    100: {"100ls": (*range(10), *range(10, 86, 5), *range(86, 100))},
}
"""By steps, and by the names of its code. There the list for 20 steps is a comment, unnamed."""

_CACHE_DIT: dict[str, dict[int, tuple[str, str]]] = {
    "slow": {8: ("511", "1"), 9: ("521", "1"), 15: ("42221", "1111"), 28: ("833211", "12223")},
    "medium": {8: ("411", "11"), 9: ("511", "11"), 15: ("42111", "1122"), 28: ("622221", "13333")},
    "fast": {8: ("311", "12"), 9: ("411", "12"), 15: ("31111", "1223"), 28: ("611111", "13454")},
    "ultra": {8: ("211", "22"), 9: ("311", "22"), 15: ("21111", "1233"), 28: ("41111", "2567")},
}
"""By policy and steps: the lengths of the runs that compute, and of those between them."""


def published(name: str, steps: int, **options: object) -> Rows:
    """Those of a published method. Raises :class:`ConfigError`.

    - "faster-diffusion" (``variant``, ``interval``): the encoder runs at listed steps.
    - "deepcache" (``branch=0, interval=3``): all but the shallow branch runs at every third step.
    - "deepcache-nonuniform" (``branch=0, interval=5, center=15, power=1.4``): most around a step.
    - "fora" (``interval=3``): the blocks run at every third step.
    - "taylorseer" (``interval=6, warm_up=3, order=1``): the blocks are forecast by a series.
    - "cache-dit" (``policy="medium", order=0``): the blocks run by its step masks ("static").

    The steps and weights are the published ones. What the last three forecast is not: here it is
    the sum of what a run of blocks adds. FORA and TaylorSeer keep the output of each attention and
    MLP, and scale it by the gates of every step: the same only while the gates do not change.
    cache-dit computes the first blocks (8 by default) at every step. FORA's code counts its steps
    from the last one, and adds the first.
    """
    if name not in _METHODS:
        raise ConfigError(f"no published schedule {name!r}: one of {', '.join(_METHODS)}")
    known = list(signature(_METHODS[name]).parameters)[1:]
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(f"{name} has no option {unknown[0]!r}: one of {', '.join(known)}")
    return _METHODS[name](steps, **options)


def _faster_diffusion(steps: int, variant: str = "", interval: int | None = None) -> Rows:
    """Without a variant: the first list for so many steps. Gaps of "pro" are 2, 3, 4, ... steps."""
    if interval is not None and not variant:
        return rows_every(interval, steps), "encoder"
    listed = _FASTER_DIFFUSION.get(steps, {})
    pro = tuple(n * (n + 3) // 2 for n in range(steps) if n * (n + 3) // 2 < steps)
    keys = {**listed, "pro": pro}.get(variant or next(iter(listed), ""))
    if keys is None or interval is not None:
        lists = "; ".join(f"{n}: {', '.join(names)}" for n, names in _FASTER_DIFFUSION.items())
        raise ConfigError(
            f"Faster Diffusion has no list for steps={steps}, variant={variant!r}. By steps it has "
            f"{lists}; for any number give variant='pro', or interval and no variant"
        )
    return rows_at(keys, steps), "encoder"


def _deepcache(steps: int, branch: int = 0, interval: int = 3) -> Rows:
    return rows_every(interval, steps), f"deep.{branch}"


def _deepcache_nonuniform(
    steps: int, branch: int = 0, interval: int = 5, center: int = 15, power: float = 1.4
) -> Rows:
    """The power is lowered until no keys fall together. Of a negative number it is complex."""
    uniform = _every(interval, steps)
    keys = uniform if interval == 1 else (0,)
    while len(keys) < len(uniform) and power > 1:
        first, last = (-center) ** (1 / power), (steps - center) ** (1 / power)
        powers = np.linspace(first, last, len(uniform) + 1) ** power
        keys = (0, *(center + int(x) for x in np.unique(powers.real.astype(int))[1:-1]))
        power -= 0.02
    if len(keys) < len(uniform):
        raise ConfigError(f"{len(uniform)} keys do not fit around step {center} of {steps}")
    return rows_at(keys, steps), f"deep.{branch}"


def _fora(steps: int, interval: int = 3) -> Rows:
    return rows_every(interval, steps), "blocks"


def _taylorseer(steps: int, interval: int = 6, warm_up: int = 3, order: int = 1) -> Rows:
    """Steps ``interval`` apart, from the last one of those that warm up."""
    keys = {warm_up - 1 + key for key in _every(interval, steps)}
    return _series({*range(warm_up), *keys}, steps, order, warm_up - 1)


def _cache_dit(steps: int, policy: str = "medium", order: int = 0) -> Rows:
    """Its calibrator forms no difference before the fourth step: its count starts one late."""
    if policy not in _CACHE_DIT or order not in (0, 1) or (steps < 8 and steps not in (4, 6)):
        raise ConfigError(
            f"cache-dit has no policy={policy!r} and order={order!r} for {steps} steps: policies "
            f"are {', '.join(_CACHE_DIT)}, orders 0 and 1, and steps 4, 6, or 8 and more"
        )
    sizes = {4: ("21", "1"), 6: ("31", "2"), **_CACHE_DIT[policy]}
    size = min((size for size in sizes if size >= steps), default=28)
    run, between = ([int(length) for length in lengths] for lengths in sizes[size])
    parts = [(part, i) for i in range(len(between)) for part in (run, between)]
    growth = [(part, i, max(1, int(part[i] * (steps / 28 * 0.5)))) for part, i in parts]
    growing, shrinking = cycle([*growth, (run, -1, 1)]), cycle((between, run))
    while sum(run + between) < steps:
        part, i, more = next(growing)
        part[i] += more
    while sum(run + between) > steps:
        part = next(shrinking)
        part[-1:] = [length - 1 for length in part[-1:] if length > 1]
    mask = [bit for n, m in zip_longest(run, between, fillvalue=0) for bit in [1] * n + [0] * m]
    return _series({*np.flatnonzero(mask).tolist(), steps - 1}, steps, order, 3)


def _series(keys: Collection[int], steps: int, order: int, since: int) -> Rows:
    """A Taylor series at the last key step, its derivatives differences of the last keys, formed at
    keys from ``since`` on. Order 1 is the line through two; order 2 no parabola through three."""
    if order not in (0, 1, 2):
        raise ConfigError(f"order={order}: one of 0, 1, 2")
    terms, last, rows = list[dict[int, Fraction]](), 0, list[Row]()
    for step in range(steps):
        if step in keys:
            older, terms = terms[:order] if step >= since else [], [{step: Fraction(1)}]
            for old in older:
                new = {**dict.fromkeys(old, Fraction()), **terms[-1]}
                terms.append({key: (new[key] - old.get(key, 0)) / (step - last) for key in new})
            last = step
        row = dict.fromkeys(terms[-1] if terms else (), Fraction())
        for i, term in enumerate(terms):
            for key, weight in term.items():
                row[key] += weight * (step - last) ** i / factorial(i)
        rows.append(tuple((key, float(weight)) for key, weight in row.items() if weight))
    return tuple(rows), "blocks"


def _every(interval: int, steps: int) -> tuple[int, ...]:
    """The key steps. Raises :class:`ConfigError`."""
    return tuple(dict.fromkeys(row[0][0] for row in rows_every(interval, steps)))


_METHODS: dict[str, Callable[..., Rows]] = {
    "faster-diffusion": _faster_diffusion,
    "deepcache": _deepcache,
    "deepcache-nonuniform": _deepcache_nonuniform,
    "fora": _fora,
    "taylorseer": _taylorseer,
    "cache-dit": _cache_dit,
}
