"""What a call changes of its recorded one, and what of that no update follows."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor

from .baseline import Baseline
from .codegen.errors import SparsifyWarning
from .codegen.tables import grid_mask
from .passes.blend import sites
from .plan import Plan
from .runtime import Runtime
from .signature import Call

INVISIBLE = 1 / 127
"""Of the largest recorded value. A change that is smaller, as of one level of a picture in -1..1,
is no edit."""


def changed(runtime: Runtime, baseline: Baseline, call: Call) -> Tensor:
    """bool [N, H, W], on the host: where the call's inputs are not the recorded ones at all."""
    found = torch.zeros(baseline.shape, dtype=torch.bool, device="cpu")
    spots = runtime.sidecar.inputs
    for spot, old, new in zip(spots, baseline.inputs, call.leaves, strict=True):
        if spot is not None:
            own = sites(spot.layout, old != new).cpu()
            if len(own) != len(found):
                own = own.any(0, keepdim=True)
            found |= grid_mask(own, baseline.grid)
    return found


@dataclass
class Drops:
    """Warns of the first edit that an update leaves out, and then never again."""

    is_told: bool

    def look(self, runtime: Runtime, baseline: Baseline, call: Call, plan: Plan) -> None:
        """Compares the inputs with the recorded ones where the update takes the recorded ones.

        That waits for the device, so elsewhere than on a CPU only the first call with a plan is
        looked at: its tables are made on the host, and sent.
        """
        if self.is_told or (runtime.device.type != "cpu" and runtime.sidecar.key in plan.tables):
            return
        tables = runtime.plan(plan)
        kept = baseline.inputs
        if not tables.is_empty:
            kept = tuple(runtime.edited_inputs(call.leaves, kept, tables.masks))
        leaves = zip(call.signature.names, call.leaves, kept, strict=True)
        for index, (name, new, own) in enumerate(leaves):
            if own is new or not isinstance(new, Tensor) or torch.equal(own, new):
                continue
            lost = _visible(new, own, baseline.inputs[index])
            if not lost.any():
                continue
            spot = runtime.sidecar.inputs[index]
            share = None if spot is None else float(sites(spot.layout, lost).float().mean())
            self._tell(f"{call.what}: {_lost(name, share)}")
            return

    def _tell(self, text: str) -> None:
        self.is_told = True
        warnings.warn(
            f"{text}. Said once; `warn_dropped=False` never says it", SparsifyWarning, stacklevel=5
        )


def _visible(new: Tensor, kept: Tensor, recorded: Tensor) -> Tensor:
    if not new.is_floating_point():
        return new != kept
    return (new - kept).abs() > INVISIBLE * recorded.abs().max()


def _lost(name: str, share: float | None) -> str:
    if share is None:
        return f"the mask is empty, so the new {name} changes nothing: mark what shall follow it"
    return (
        f"{name} differs from the recorded one outside the mask, at {share:.1%} of the sites, and "
        "the recorded values were taken there: mark all that is edited (`difference_mask`), do "
        "not invert the mask, and start a sampler from the recorded run's noise"
    )
