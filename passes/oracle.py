"""The semantics, spelt out: compute every node densely, blend with ``where``.

value(v) = where(active_mask[grid], op_v(overlays of its inputs), baseline(v))

A value that a step takes over from others stands in the place of op_v(...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sparsify.codegen import norms
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from .blend import blend
from .layout import Layout
from .reuse import Crossing
from .rules.base import layout_of

Taken = Mapping[Crossing, Tensor]
"""What a step takes over, whole."""


class Dense(Interpreter):
    """The dense model; some values are ``taken`` over from other steps."""

    def __init__(self, module: GraphModule, taken: Taken | None = None) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._taken = {crossing.end: (crossing, x) for crossing, x in (taken or {}).items()}

    def run_node(self, n: Node) -> Any:
        if n.name not in self._taken:
            return super().run_node(n)
        crossing, value = self._taken[n.name]
        return value if crossing.start is None else self.value(crossing.start) + value

    def crossing(self, crossings: Sequence[Crossing]) -> Taken:
        """After a run: what other steps may take over."""
        return {
            own: self.value(own.end)
            if own.start is None
            else self.value(own.end) - self.value(own.start)
            for own in crossings
        }

    def value(self, name: str) -> Tensor:
        value: Tensor = next(x for node, x in self.env.items() if node.name == name)
        return value


class Oracle(Dense):
    """The dense model on edited inputs, each node blended with the baseline run.

    ``masks`` gives the bool [H, W] mask of a node, None where it is computed whole.
    norm "baseline" takes the statistics of group norms from the baseline run.
    """

    def __init__(
        self,
        module: GraphModule,
        baseline: dict[Node, Any],
        masks: dict[Node, Tensor],
        norm: str,
        taken: Taken | None = None,
    ) -> None:
        super().__init__(module, taken)
        self._baseline = baseline
        self._masks = masks
        self._norm = norm

    def run_node(self, n: Node) -> Any:
        new = super().run_node(n)
        mask = self._masks.get(n)
        if mask is None or n.op == "output":
            return new
        if n.target is norms.group_norm and self._norm == "baseline":
            new = self._normalise(n)
        layout: Layout = layout_of(n)
        if n.target is norms.group_norm:
            return (blend(layout, mask, new[0], self._baseline[n][0]), *new[1:])
        return blend(layout, mask, new, self._baseline[n])

    def _normalise(self, n: Node) -> tuple[Tensor, Tensor, Tensor]:
        arguments: Any = self.map_nodes_to_values(n.args, n)
        x, weight, bias, groups, _ = arguments
        _, mean, rstd = self._baseline[n]
        batch, channels = x.shape[:2]
        y = (x.reshape(batch, groups, -1) - mean.unsqueeze(2)) * rstd.unsqueeze(2)
        y = y.view_as(x)
        if weight is not None:
            y = y * weight.view(1, channels, *[1] * (x.dim() - 2))
        if bias is not None:
            y = y + bias.view(1, channels, *[1] * (x.dim() - 2))
        return y.to(x.dtype), mean, rstd
