"""Edits so large that the dense model costs no more than an update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor
from torch.fx import GraphModule, Node

from .passes.analyze import draws
from .passes.macs import macs
from .passes.masks import ALL


class LargeEdits:
    """Those that leave more than the share ``above`` of the MACs of the ``dense`` graph."""

    def __init__(self, dense: GraphModule, above: float) -> None:
        self._above = above
        self._work: Counter[str] = Counter()
        # The recorded noise counts, which a dense run would draw anew.
        self._is_repeatable = not any(map(draws, dense.graph.nodes))
        for node in dense.graph.nodes:
            mask = node.meta.get("mask")
            self._work[mask.name if isinstance(mask, Node) else str(mask)] += macs(node)

    def includes(self, masks: Mapping[str, Tensor]) -> bool:
        """Would an update with these masks, bool [H, W] by name, compute too much?"""
        if not self._is_repeatable:
            return False
        packed = (float(m.float().mean()) * self._work[name] for name, m in masks.items())
        return self._work[ALL] + sum(packed) > self._above * sum(self._work.values())
