"""What the demo measures of an edit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

Step = Callable[[str], None]
"""Told what is done next."""


@dataclass(frozen=True)
class Measurement:
    """One edit: its cost dense and as an update, and how far the update is from dense."""

    network: str
    policy: str
    edit_fraction: float
    dense_ms: float
    update_ms: float
    speedup_vs_dense: float
    macs_dense: int
    macs_update: int
    psnr_db: float
    psnr_inside_db: float
    psnr_sigma1_db: float | None = None
    psnr_sigma1_inside_db: float | None = None
    max_abs_difference: float | None = None


def psnr(image: Tensor, reference: Tensor, data_range: float, where: Tensor | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB; infinite for equal pictures.

    ``image`` and ``reference`` are ``[..., H, W]``; ``where``, bool ``[H, W]``, limits the
    comparison to some pixels.
    """
    error = (image - reference).double().square()
    mse = float((error if where is None else error[..., where]).mean())
    return math.inf if mse == 0 else 10 * math.log10(data_range**2 / mse)


def costs(times: Mapping[str, float], macs_dense: int, macs_update: int) -> dict[str, Any]:
    """From milliseconds of "dense" and "update"."""
    return {
        "dense_ms": times["dense"],
        "update_ms": times["update"],
        "speedup_vs_dense": times["dense"] / times["update"],
        "macs_dense": macs_dense,
        "macs_update": macs_update,
    }
