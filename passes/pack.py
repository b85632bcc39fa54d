"""Writes the update graph: every node again, on packed values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.fx import GraphModule

from .base import Pass
from .costs import Costs
from .packing.packer import Packer
from .packing.values import Norm


@dataclass(frozen=True)
class Pack(Pass):
    """Adds the update nodes (stage "update"), what no edit reaches (stage "conditions"), the tables
    (stage "plan") and what the record graph must remember (stage "record") to the joint graph.

    norm "updated" corrects the recorded statistics by what changed, "baseline" takes them as
    they are. Maps are remembered in ``dtype``, if it is given and narrower than theirs. ``padded``
    tables have one of few sizes (:mod:`sparsify.codegen.tables`). ``costs`` are the machine's.
    """

    requires: ClassVar[tuple[str, ...]] = ("layouts", "masks")
    ensures: ClassVar[tuple[str, ...]] = ("packed",)

    norm: Norm = "updated"
    dtype: torch.dtype | None = None
    padded: bool = False
    costs: Costs = field(default_factory=Costs)

    def __call__(self, module: GraphModule) -> GraphModule:
        packer = Packer(module.graph, self.norm, self.dtype, self.padded, self.costs)
        module.meta["packed"] = packer.run()
        return module
