"""Edits so large that the dense model costs no more than an update."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node

from .passes.analyze import draws
from .passes.macs import macs
from .passes.masks import ALL
from .passes.oracle import blend


class LargeEdits:
    """Decides by the share of MACs, ``above`` of which the ``dense`` graph is to run, and keeps
    what lies outside the mask as it was recorded."""

    def __init__(self, dense: GraphModule, above: float) -> None:
        self._inputs = dense.graph.find_nodes(op="placeholder")
        self._outputs: Any = dense.graph.output_node().args[0]
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

    def edited_inputs(
        self, new: Sequence[Any], old: Sequence[Any], masks: Mapping[str, Tensor]
    ) -> list[Any]:
        """``new`` inside the masks and ``old`` outside."""
        return _overlaid(self._inputs, new, old, masks)

    def edited_outputs(
        self, new: Sequence[Any], old: Sequence[Any], masks: Mapping[str, Tensor]
    ) -> list[Any]:
        """``new`` inside the masks and ``old`` outside."""
        return _overlaid(self._outputs, new, old, masks)


def _overlaid(
    nodes: Sequence[Any], new: Sequence[Any], old: Sequence[Any], masks: Mapping[str, Tensor]
) -> list[Any]:
    """Values that lie on a grid blended by its mask, all others the new ones."""
    values = list(new)
    for index, node in enumerate(nodes):
        mask = node.meta.get("mask") if isinstance(node, Node) else None
        if isinstance(mask, Node):
            values[index] = blend(node.meta["layout"], masks[mask.name], new[index], old[index])
    return values
