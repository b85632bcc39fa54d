"""Patterns of sparsity."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import ConfigError


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
