"""Edits so large that the dense model costs no more than an update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from torch import Tensor
from torch.fx import GraphModule

from .passes.analyze import draws
from .passes.facts import facts
from .passes.macs import macs


class LargeEdits:
    """Those that leave more than the share ``above`` of the MACs of the ``dense`` graph."""

    def __init__(self, dense: GraphModule, above: float) -> None:
        self._above = above
        self._work: Counter[str] = Counter()
        """Of edited nodes, by the name of their mask; "" of those without one."""
        self._dense = 0
        # The recorded noise counts, which a dense run would draw anew.
        self._is_repeatable = not any(map(draws, dense.graph.nodes))
        for node in dense.graph.nodes:
            known = facts(node)
            self._work[known.mask.name if known.mask else ""] += macs(node) if known.edited else 0
            self._dense += macs(node)

    def includes(self, masks: Mapping[str, Tensor]) -> bool:
        """Would an update with these masks, bool [H, W] by name, compute too much?"""
        if not self._is_repeatable:
            return False
        packed = (float(m.float().mean()) * self._work[name] for name, m in masks.items())
        return self._work[""] + sum(packed) > self._above * self._dense
