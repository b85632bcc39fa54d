"""The parametrization that makes a dense weight sparse."""

from __future__ import annotations

from torch import Tensor, nn

from ..codegen.nm import nm_masked
from ..codegen.nm.pattern import DENSE, NM


class Masked(nn.Module):
    """weight [O, I, *taps] -> the same with zeros; see :func:`.codegen.nm.nm_masked`.

    The pattern is plain attributes, so that what is captured or compiled of a model depends on
    them as on any other.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.n, self.m, self.v = DENSE
        self.decay = decay

    @property
    def pattern(self) -> NM:
        return NM(self.n, self.m, self.v)

    @pattern.setter
    def pattern(self, pattern: NM) -> None:
        self.n, self.m, self.v = pattern

    def forward(self, weight: Tensor) -> Tensor:
        if self.n == self.m:
            return weight
        return nm_masked(weight, self.n, self.m, self.v, self.decay)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Assigned weights are dense ones."""
        return weight

    def extra_repr(self) -> str:
        return str(self.pattern)
