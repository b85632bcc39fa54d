"""Writes every node of the model again, and what becomes of its values at a commit."""

from __future__ import annotations

import operator
from typing import Any

import torch
from sparsify.codegen import ops
from torch.fx import Node

from ..facts import facts, is_constant, note
from ..rules import find_rule
from ..rules.base import is_drawn, layout_of, shape_of
from .items import apart
from .packed import Packed
from .place import Place
from .recompute import sources_pack
from .values import Values, by_rows

aten = torch.ops.aten


class Packer(Values):
    """Emits the update nodes for a whole graph."""

    def run(self) -> Packed:
        nodes = [n for n in self._graph.nodes if is_constant(n) or facts(n).stage == "record"]
        for node in nodes:
            self._current[node] = self._emit(node)
        results: Any = self._graph.output_node().args[0]
        leaves = [leaf for leaf in results if isinstance(leaf, Node)]
        outputs = [self._output(leaf) for leaf in leaves]
        return Packed(outputs, self._current.__getitem__, self.committed)

    def _emit(self, node: Node) -> Node:
        """The update node for ``node``: packed at its mask, or whole."""
        if is_constant(node):
            return node
        if node.op == "placeholder":
            return self._input(node)
        mask, rule = facts(node).mask, find_rule(node)
        if not facts(node).edited:
            if is_drawn(node):
                return node  # recorded: other conditions do not draw again
            new = self._condition(node)
        elif mask is not None and not sources_pack(node):
            new = self._take(node, self._clone(node), self.own_sites(node))
        elif mask is not None:
            assert rule is not None
            new = rule.emit(node, Place(self, self.own_sites(node), False))
        else:
            new = self._whole(node) or self._clone(node)
        for key in ("stack_trace", "nn_module_stack"):
            if key in node.meta:
                new.meta[key] = node.meta[key]
        return new

    def _whole(self, node: Node) -> Node | None:
        rule = find_rule(node)
        if rule is None or facts(node).layout is None:
            return None
        return rule.emit_all(node, Place(self, None, False))

    def _clone(self, node: Node, stage: str = "update") -> Node:
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), self.materialise)
        return self._node(stage, node.target, args, kwargs)

    def _condition(self, node: Node) -> Node:
        """What no edit reaches: recorded too, and computed again only for other conditions."""
        new = self._clone(node, "conditions")
        note(new, recorded=node)
        return new

    def _input(self, node: Node) -> Node:
        """A second placeholder: the edited input; at inactive sites the recorded one counts."""
        with self._graph.inserting_before(self._graph.output_node()):
            new = self._graph.placeholder(f"{node.name}_edited")
        stage = "update" if facts(node).edited else "conditions"
        note(new, stage=stage)
        note(new, recorded=node)
        sites = self.own_sites(node)
        return new if sites is None else self._take(node, new, sites)

    def _output(self, node: Node) -> Node:
        """A result of the model: active sites over the recorded result."""
        sites = self.own_sites(node)
        if sites is None:
            return self.materialise(node)
        layout = layout_of(node)
        self._origin[node] = ("output", node)
        if self.items > 1:
            old, new = self._merged("update", layout, node), self._current[node]
            full = self._shared("update", ops.overlay, old, new, sites, layout.site_dim)
            full = self._shared("update", ops.regroup, full, *apart(layout))
            return self._shared("update", ops.contiguous, full)
        if by_rows(layout):
            return self._shared("update", ops.overlay_image, node, self._current[node], sites)
        if layout.merged:
            dim = layout.site_dim
            return self._shared("update", ops.overlay, node, self._current[node], sites, dim)
        return self.materialise(node)

    def committed(self, recorded: Node) -> Node:
        """What a recorded value becomes when the edit is made the new baseline."""
        key = ("committed", recorded)
        if key not in self._memo:
            self._memo[key] = self._committed(recorded)
        node: Node = self._memo[key]
        return node

    def _committed(self, recorded: Node) -> Node:
        kind, node, *leaf = self._origin.get(recorded, ("plain", recorded))
        if kind == "value":
            return self._narrowed("update", self._overlaid(node, recorded), node)
        if kind == "leaf":
            return self._in_place_of(leaf[0], node)
        if kind in ("mean", "rstd"):
            return self._committed_statistics(node)[kind == "rstd"]
        if kind == "truth":
            return self.update(ops.truth, recorded, False)
        if kind == "output":
            return self._output(node)
        return self.materialise(node)

    def _in_place_of(self, leaf: Node, anchor: Node) -> Node:
        """The part of ``anchor`` that stands in the place of ``leaf``."""
        full, leaves = self._blended(anchor), self._recall.leaves(anchor)
        if len(leaves) > 1:
            before = leaves[: leaves.index(leaf)]
            start = sum(shape_of(other)[1] for other in before)
            full = self.update(aten.slice.Tensor, full, 1, start, start + shape_of(leaf)[1])
        if by_rows(layout_of(leaf)):
            full = self.update(aten.transpose.int, full, 1, 2)
        return self._narrowed("update", full, leaf)

    def _committed_statistics(self, norm: Node) -> tuple[Node, Node]:
        """Of the whole edited map, which a commit writes out: corrections would add up."""
        x = norm.all_input_nodes[0]
        if self._norm == "baseline" or self.own_sites(x) is None:
            return self.current_statistics(norm, x)
        groups, eps = norm.args[3:]
        whole = self._blended(x)
        if self.items > 1:
            whole = self._shared("update", ops.regroup, whole, *apart(layout_of(x)))
        both = self._shared("update", norm.target, whole, None, None, groups, eps)
        return self.update(operator.getitem, both, 1), self.update(operator.getitem, both, 2)
