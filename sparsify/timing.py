"""Times of several variants, taken in turns so that all of them see the same load."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

T = TypeVar("T")
_CPU = torch.device("cpu")


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    warm_up: int = 1,
    device: torch.device = _CPU,
    tell: Callable[[str], Any] | None = None,
) -> dict[str, list[float]]:
    """Milliseconds of every variant, each of them once a round.

    ``warm_up`` rounds before are not counted. ``tell`` hears of every round that is over.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(1 - warm_up, rounds + 1):
        for name, run in variants.items():
            spent, _ = timed(run, device)
            if number > 0:
                times[name].append(spent)
        if tell is not None:
            tell(f"round {number} of {rounds}" if number > 0 else "warming up")
    return times


def medians(times: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of every variant's times."""
    return {name: statistics.median(of) for name, of in times.items()}


def timed(run: Callable[[], T], device: torch.device = _CPU) -> tuple[float, T]:
    """Milliseconds of one run, and its result.

    On a GPU they are the device's own, from an idle one to an idle one.
    """
    if device.type == "cpu":
        start = time.perf_counter()
        result = run()
        return 1000 * (time.perf_counter() - start), result
    module = torch.get_device_module(device)
    first, last = (module.Event(enable_timing=True) for _ in range(2))
    module.synchronize()
    first.record()
    result = run()
    last.record()
    module.synchronize()
    return float(first.elapsed_time(last)), result
