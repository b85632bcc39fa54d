"""What a user can choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, get_args

import torch

from .codegen.errors import ConfigError
from .passes.base import Pass
from .passes.costs import Costs

Policy = Literal["fixed", "exact"]
Norm = Literal["updated", "baseline"]
Attention = Literal["full"]
Backend = Literal["auto", "inductor", "eager"]

_CHOICES = {"policy": Policy, "norm": Norm, "attention": Attention, "backend": Backend}


@dataclass(frozen=True)
class SparsifyConfig:
    """How a model is rewritten. Raises :class:`ConfigError` for a value that cannot work."""

    policy: Policy = "fixed"
    """"fixed": one mask per grid, fast, an approximation beyond the mask. "exact": masks grow
    with every operator's reach; equal to the dense run on the edited input, to rounding."""

    dilate: int | None = None
    """Sites of the input's grid, pixels or latents, by which policy "fixed" widens the mask. None:
    5, on grids below 32 a sixth of the shorter side, at least 1. What stands around an edit
    changes with it: 1 instead of 5 costs 2 dB inside a 5 % edit of a trained diffusion UNet, and
    6 to 20 dB on trained 32 x 32 latents. None also leaves a row of tokens, of which neighbours may
    lie apart in the picture, as it is. Fewer are active and an update is faster with less:
    choose that for weak edits, for masks that are wide already, and for decoders, whose reach is
    a few latents."""

    dense_share: float = 0.06
    """Policy "fixed" computes the smallest grids whole, up to this share of the model's MACs."""

    dense_above: float = 0.85
    """An update that would compute more than this share of the model's MACs runs the dense model
    instead, which is then no slower; inputs and outputs are the baseline's outside the mask as
    always. 1 never does."""

    norm: Norm = "updated"
    """Group norm statistics: corrected by what changed, or the baseline's as they are."""

    attention: Attention = "full"
    """Active queries see the current keys and values of all sites."""

    grids: Mapping[str, tuple[int, int] | None] = field(default_factory=dict)
    """(H, W) of inputs that are tokens [N, H*W, C], by name; None for one that no edit changes. A
    side of -1 is as long as the tokens ask for, so that (1, -1) is a row of them; of pictures it
    says nothing.
    Of other inputs of four or five dimensions those are pictures [N, C, H, W], [N, H, W, C] or
    videos [N, C, T, H, W], whose frames share one mask, that the model uses as such or joins with
    one, labels and booleans among them."""

    baseline_dtype: torch.dtype | None = None
    """Remembered maps are rounded to torch.float16 or torch.bfloat16, in half the memory; outputs
    and statistics are not. None keeps them as they are."""

    any_step: bool = False
    """An update may come with another timestep or label (inputs of at most one axis) than the
    recorded ones; outside the mask the picture stays that of the recorded step."""

    warn_dropped: bool = True
    """Warn of the first edit that lies outside its mask, which an update leaves out. On CUDA only
    the first update of each plan is looked at."""

    costs: Costs = field(default_factory=Costs)
    """Numbers measured on a machine, by which packing rules choose kernels and weight formats."""

    passes: tuple[Pass, ...] = ()
    """Passes of your own (frozen dataclasses): each runs as soon as what it requires holds."""

    backend: Backend = "auto"
    """"auto": graphs run at once as they are, and are compiled by a process of its own, nice to all
    others, as soon as the calls so far say that it pays; on CUDA as "inductor". Other processes
    find what was compiled. "inductor": compiled by torch.compile at first use, which waits for it.
    "eager": never compiled."""

    def __post_init__(self) -> None:
        for name, choice in _CHOICES.items():
            if getattr(self, name) not in get_args(choice):
                raise ConfigError(f"{name}={getattr(self, name)!r}: one of {get_args(choice)}")
        if self.dilate is not None and (not isinstance(self.dilate, int) or self.dilate < 0):
            raise ConfigError(f"dilate={self.dilate!r}: a whole number of pixels, 0 or more")
        if not 0 <= self.dense_share < 1:
            raise ConfigError(f"dense_share={self.dense_share!r}: a share of MACs in [0, 1)")
        if not 0 <= self.dense_above <= 1:
            raise ConfigError(f"dense_above={self.dense_above!r}: a share of MACs in [0, 1]")
        self._check_grids()
        for own in self.passes:
            if not isinstance(own, Pass):
                raise ConfigError(
                    f"passes holds {own!r}: give objects of sparsify.passes.base.Pass"
                )
        if self.baseline_dtype not in (None, torch.float16, torch.bfloat16):
            raise ConfigError(
                f"baseline_dtype={self.baseline_dtype!r}: None, torch.float16 or torch.bfloat16"
            )

    def dilation(self, grid: tuple[int, int]) -> int:
        """``dilate`` for an input on ``grid``."""
        if self.dilate is not None:
            return self.dilate
        return 0 if min(grid) == 1 else min(5, max(1, min(grid) // 6))

    def _check_grids(self) -> None:
        what = "pass {name of the input: (H, W)}, or None in its place for one no edit changes"
        if not isinstance(self.grids, Mapping):
            raise ConfigError(f"grids={self.grids!r}: {what}")
        for name, grid in self.grids.items():
            if grid is not None and not _is_grid(grid):
                raise ConfigError(f"grids={{{name!r}: {grid!r}}}: {what}")

    @staticmethod
    def of(config: SparsifyConfig | None, overrides: Mapping[str, Any]) -> SparsifyConfig:
        """``config``, or the default, with other values for some fields. Raises
        :class:`ConfigError`."""
        names = [field.name for field in fields(SparsifyConfig)]
        unknown = sorted(set(overrides) - set(names))
        if unknown:
            raise ConfigError(f"{unknown[0]!r} is not one of {', '.join(names)}")
        return replace(config or SparsifyConfig(), **overrides)


def _is_grid(value: object) -> bool:
    """Two whole numbers of at least 1, of which one may be left open, as -1."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    is_whole = all(isinstance(size, int) and (size > 0 or size == -1) for size in value)
    return is_whole and tuple(value) != (-1, -1)
