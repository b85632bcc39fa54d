"""What an update has to give, made without the compiler's analysis and tables.

Of the compiler it takes the canonical graph, and two bits for each of its nodes: whether an update
computes it whole, and whether it comes from its sources alone. That is the compiler's to choose;
what follows from it is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import torch
from hypothesis import assume
from hypothesis import strategies as st
from sparsify.codegen import norms, ops
from sparsify.passes.facts import facts
from sparsify.passes.packing.recompute import follows
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from sparsify import SparseModule
from tests.arrangement import Arrangements, is_move
from tests.networks import Arguments, Recipe
from tests.standing import Standing, moved_masks, padded, stand

aten = torch.ops.aten
Norm = Literal["updated", "baseline"]


@dataclass(frozen=True)
class Fixed:
    """The settings of policy "fixed"."""

    norm: Norm = "updated"
    dilate: int = 1
    dense_share: float = 0.0


FIXED = st.builds(
    Fixed,
    norm=st.sampled_from(["updated", "baseline"]),
    dilate=st.integers(0, 2),
    dense_share=st.sampled_from([0.0, 0.0, 0.3]),
)


class Reference:
    """The contract on the graph that ``sparse`` made of the network: which entries belong to
    which site is found by trying (:mod:`tests.arrangement`), the masks by pooling."""

    def __init__(self, sparse: SparseModule, recipe: Recipe, fixed: Fixed) -> None:
        self.fixed = fixed
        self.module = sparse.graphs(*recipe.inputs())["dense"].module
        joint = sparse.graphs(*recipe.inputs()).joint
        self._following = {node.name for node in joint.graph.nodes if _follows(node)}
        nodes = list(self.module.graph.nodes)
        run = Arrangements(self.module, nodes[0])
        with torch.no_grad():
            run.run(*recipe.inputs())
        packed = [node for node in nodes if facts(node).mask is not None]
        lost = [node for node in packed if node not in run.found]
        # On so few sites a change of one can be one of all: trying cannot tell.
        assume(all(prod(facts(node).layout.grid) > 4 for node in lost))
        # So are windows of one site, in a batch.
        assume(recipe.batch == 1 or not lost)
        assert not lost, f"updated in part, but on no grid: {lost}"
        self._packed = {node: run.found[node] for node in packed}
        self._found = run.found
        self._wraps = self._wrapped(0), self._wrapped(1)

    def widened(self, mask: Tensor) -> Tensor:
        """The active sites of the input."""
        return _dilate(mask, self.fixed.dilate, self._wraps)

    def _wrapped(self, axis: int) -> bool:
        """Is a map on a grid padded circularly along this axis?"""
        return any(
            node.target is aten.pad.default
            and node.args[2:3] == ("circular",)
            and any(node.args[1][2 * (1 - axis) :][:2])
            for node in self._packed
        )

    def masks(self, mask: Tensor) -> dict[Node, Tensor]:
        """The active mask of every node that is not computed whole."""
        whole = Standing(self.widened(mask))
        standing: dict[Node, Standing] = {}
        for node in self.module.graph.nodes:
            if node in self._found:
                standing[node] = stand(node, self._found, standing, whole)
        masks: dict[Node, Tensor] = {}
        for node, arrangement in self._packed.items():
            before = masks.get(node.all_input_nodes[0]) if node.all_input_nodes else None
            if before is not None and _copies(node):
                masks[node] = before
            elif node.name in self._following:
                masks[node] = self._behind(node, masks, standing)
            elif before is not None and node.target is aten.pad.default and arrangement.is_image:
                masks[node] = padded(before, node)
            else:
                masks[node] = standing[node].mask(arrangement.grid)
        return masks

    def _behind(
        self, node: Node, masks: dict[Node, Tensor], standing: dict[Node, Standing]
    ) -> Tensor:
        """The sites of what comes from its sources alone: those that read an active one."""
        grid = self._packed[node].grid
        found = torch.zeros(grid, dtype=torch.bool)
        for source in (arg for arg in node.all_input_nodes if arg in masks):
            mask, before = masks[source], self._packed[source].grid
            if is_move(node, self._found):
                found |= moved_masks(node, {source: mask})
            elif before == grid:
                found |= mask
            elif torch.equal(mask, standing[source].mask(before)) and all(
                a % b == 0 for a, b in zip(before, grid, strict=True)
            ):
                found |= standing[node].mask(grid)
            else:
                image: Any = node.target(mask.double()[None, None], *node.args[1:], **node.kwargs)
                found |= image[0, 0] > 0
        return found

    def active(self, mask: Tensor) -> dict[Node, Tensor]:
        """The entries that an update computes, of every node that is not computed whole."""
        return {node: self._packed[node].active(own) for node, own in self.masks(mask).items()}

    def update(self, before: Arguments, after: Arguments, mask: Tensor) -> Any:
        """The contract, spelt out."""
        return self.commit(self.record(before), after, mask)[0]

    @torch.no_grad()
    def record(self, inputs: Arguments) -> dict[Node, Any]:
        """Every value by node."""
        baseline = Interpreter(self.module, garbage_collect_values=False)
        baseline.run(*inputs)
        return baseline.env

    @torch.no_grad()
    def commit(
        self, values: dict[Node, Any], after: Arguments, mask: Tensor
    ) -> tuple[Any, dict[Node, Any]]:
        """The output, and every value of the edited run."""
        contract = Contract(self.module, values, self.active(mask), self.fixed.norm)
        return contract.run(*after), contract.env

    def active_outputs(self, mask: Tensor) -> list[Tensor | None]:
        """Per output the entries that an update may change; None: all."""
        active = self.active(mask)
        return [active.get(node) for node in tree_leaves(self.module.graph.output_node().args[0])]


class Contract(Interpreter):
    """``active`` entries of every node are computed from the values of its operands; the others
    are the baseline's."""

    def __init__(
        self, module: GraphModule, baseline: dict[Node, Any], active: dict[Node, Tensor], norm: Norm
    ) -> None:
        super().__init__(module, garbage_collect_values=False)
        self._baseline, self._active, self._norm = baseline, active, norm

    def run_node(self, n: Node) -> Any:
        new = super().run_node(n)
        if n not in self._active or n.op == "output":
            return new
        inside, old = self._active[n], self._baseline[n]
        if n.target is not norms.group_norm:
            return torch.where(inside, new, old)
        if self._norm == "baseline":
            return (torch.where(inside, self._normed_as_before(n), old[0]), *old[1:])
        return (torch.where(inside, new[0], old[0]), *new[1:])

    def _normed_as_before(self, n: Node) -> Tensor:
        """With the mean and deviation of the baseline."""
        x, weight, bias = self.map_nodes_to_values(n.args[:3], n)  # type: ignore[misc]
        _, mean, rstd = (part.flatten()[:, None] for part in self._baseline[n])
        y = ((x.reshape(mean.shape[0], -1) - mean) * rstd).view_as(x)
        sizes = (-1, *[1] * (x.dim() - 2))
        y = y if weight is None else y * weight.view(sizes)
        return y if bias is None else y + bias.view(sizes)


def _copies(node: Node) -> bool:
    """Added for the order of the strides alone, not a node of the model."""
    return node.target in ("contiguous", ops.contiguous)


def _follows(node: Node) -> bool:
    return facts(node).mask is not None and follows(node)


def _dilate(mask: Tensor, pixels: int, wraps: tuple[bool, bool]) -> Tensor:
    wide = torch.zeros_like(mask)
    reach = range(-pixels, pixels + 1)
    for y, x in mask.nonzero().tolist():
        rows, columns = (
            [(at + step) % size for step in reach if wrap or 0 <= at + step < size]
            for at, size, wrap in zip((y, x), mask.shape, wraps, strict=True)
        )
        wide[torch.tensor(rows)[:, None], columns] = True
    return wide
