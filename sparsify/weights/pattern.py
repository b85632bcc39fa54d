"""Patterns of sparsity, and published sequences of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from ..codegen.errors import ConfigError


class NM(NamedTuple):
    """Of each m consecutive inputs n are kept; v consecutive outputs share the choice."""

    n: int
    m: int
    v: int = 1

    def __str__(self) -> str:
        return f"{self.n}:{self.m}" if self.v == 1 else f"{self.v}:{self.n}:{self.m}"

    @property
    def is_dense(self) -> bool:
        return self.n == self.m

    @property
    def share(self) -> float:
        """Of the weights, those that are kept."""
        return self.n / self.m

    @staticmethod
    def of(n: int, m: int, v: int = 1) -> NM:
        """Raises :class:`ConfigError` for a pattern that there is not."""
        if not (0 < n <= m and v > 0):
            raise ConfigError(f"n={n}, m={m}, v={v}: give 0 < n <= m and v > 0")
        return NM(n, m, v)


DENSE = NM(1, 1)

PROGRESSIVE: Mapping[str, tuple[NM, ...]] = {
    "step7": (NM(7, 8), NM(6, 8), NM(5, 8), NM(4, 8), NM(2, 4)),
    "step31": (NM(31, 32), NM(15, 16), NM(7, 8), NM(3, 4), NM(2, 4)),
}
"""SparseDM's "traditional progressive training" (Wang et al., arXiv 2404.10445): one after the
other, each for an equal part of the run (there 100,000 of 500,000 steps)."""


def progressive(schedule: str | Sequence[NM]) -> tuple[NM, ...]:
    """The patterns of a published schedule, or those that are given.

    Raises :class:`ConfigError` for an unknown name, and for none.
    """
    if isinstance(schedule, str) and schedule not in PROGRESSIVE:
        known = ", ".join(PROGRESSIVE)
        raise ConfigError(f"schedule={schedule!r}: {known}, or a sequence of NM(n, m)")
    found = PROGRESSIVE[schedule] if isinstance(schedule, str) else tuple(schedule)
    if not found:
        raise ConfigError("schedule has no pattern: give one NM(n, m) at least")
    return found
