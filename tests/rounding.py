"""How close is close: tolerances measured, not chosen.

:func:`tolerance` runs the dense model in float64 with every operator's result off by a known small
amount and sees how far its outputs move.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from hypothesis import reject
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from tests.networks import Arguments, Recipe

_STEP = 1e-7


# Each operator is a sum of at most 25 taps * 12 channels = 300 products of size <= scale, whose
# rounding errors add up like a random walk: sqrt(300) = 17 units of eps * scale.
_SLACK = 17.0

# Of the output's scale. A wrong picture is off by a percent and more of it (a site that is not
# updated, a statistic of the old map); a network that makes more than this of rounding cannot
# tell the two apart, and says nothing about an update.
_MOST = 1e-3


class _Rounding(TorchFunctionMode):
    """Moves every floating-point result by up to ``_STEP`` times its largest value."""

    def __init__(self) -> None:
        super().__init__()
        self._generator = torch.Generator().manual_seed(0)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if not isinstance(result, Tensor) or not result.is_floating_point() or not result.numel():
            return result
        noise = torch.rand(result.shape, generator=self._generator, dtype=result.dtype) * 2 - 1
        return result + noise * (_STEP * result.abs().max())


@torch.no_grad()
def tolerance(recipe: Recipe, *runs: Arguments) -> float:
    """How far rounding may move an output of the network on any of these inputs.

    eps(dtype) * slack * (change of the output per relative error made at every operator). The
    second factor holds the depth, the scale of the values, and what the network amplifies. Where
    it is so large that the result would say nothing, the example is rejected.
    """
    model = replace(recipe, dtype=torch.float64).build()
    worst, scale = 0.0, 0.0
    for run in runs:
        inputs = tuple(value.double() for value in run)
        want = tree_leaves(model(*inputs))
        with _Rounding():
            noisy = tree_leaves(model(*inputs))
        worst = max(worst, *(_distance(a, b) for a, b in zip(noisy, want, strict=True)))
        scale = max(scale, *(float(leaf.abs().max()) for leaf in want))
    allowed = float(torch.finfo(recipe.dtype).eps) * _SLACK * (worst / _STEP + scale)
    return allowed if allowed <= _MOST * scale else reject()


def _distance(got: Tensor, want: Tensor) -> float:
    return float((got.double() - want.double()).abs().max())


def assert_close(got: Any, want: Any, allowed: float) -> None:
    """All leaves, in shape and dtype, and in value to ``allowed``."""
    for ours, theirs in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        error = _distance(ours, theirs)
        assert error <= allowed, f"off by {error:.3g}, allowed {allowed:.3g}"


def assert_same(got: Any, want: Any) -> None:
    """All leaves, bit for bit."""
    for ours, theirs in zip(tree_leaves(got), tree_leaves(want), strict=True):
        assert torch.equal(ours, theirs)
