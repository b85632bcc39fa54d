"""The mask of an edit that only its prompt tells: found while the first steps run densely."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .baseline import Baseline
from .forecast import time_of
from .found_masks import difference_map, found_mask
from .passes.blend import by_site
from .runtime import Runtime
from .signature import Call


@dataclass
class Finding:
    """What a run has changed of the recorded pictures after each of its first ``steps``."""

    steps: int
    margin: int
    differences: list[Tensor] = field(default_factory=list)
    """float [N, C, H, W] each: the picture that a step is given, less the recorded one."""
    _time: float | None = None
    _is_other: bool = False
    """Had a call other inputs than its recorded one?"""

    @property
    def is_done(self) -> bool:
        return len(self.differences) > self.steps

    def looks_at(self, call: Call) -> bool:
        """Is it the first call of a step that has something to tell?"""
        return not self.is_done and time_of(call) != self._time

    def is_unchanged(self, baseline: Baseline, call: Call) -> bool:
        """Were all calls so far the recorded ones?"""
        pairs = zip(call.leaves, baseline.inputs, strict=True)
        self._is_other = self._is_other or any(
            not torch.equal(new, old) if isinstance(new, Tensor) else new != old
            for new, old in pairs
        )
        return not self._is_other

    def look(self, runtime: Runtime, baseline: Baseline, call: Call) -> None:
        """Takes note of the picture that a step is given."""
        self._time = time_of(call)
        inputs = zip(runtime.sidecar.inputs, call.leaves, baseline.inputs, strict=True)
        spot, new, old = next(one for one in inputs if one[0] is not None and one[0].mask)
        assert spot is not None
        self.differences.append(by_site(spot.layout, new.detach().float() - old.float()))

    def mask(self) -> Tensor:
        """bool [N, H, W], on the host."""
        return found_mask(difference_map(self.differences[1:]), self.margin).cpu()
