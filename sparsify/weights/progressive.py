"""Published sequences of patterns of sparsity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..codegen.errors import ConfigError
from ..codegen.nm.pattern import NM

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
