"""How a recorded value is had again at some sites: remembered, or recomputed from an ancestor."""

from __future__ import annotations

import operator

import torch
from sparsify.codegen import norms
from torch.fx import Node

from ..facts import facts
from ..layout import Layout
from ..rules import find_rule
from ..rules.base import layout_of, shape_of
from .recompute import follows, grid_sources


class Recall:
    """Decides for every value of the joint graph. A commit leaves sites of several generations.

    What is recomputed from its source alone is right for all of them. What also reads numbers
    that hold for the whole map (statistics if they are ``updated``, a time embedding, a gate) is
    right only while all sites are of one run. It is remembered itself, unless that would take
    more memory: then it stands, after a commit, in the place of its *leaves*, the remembered
    values from which it was recomputed.
    """

    def __init__(self, updated: bool) -> None:
        self._updated = updated
        self._leaves: dict[Node, tuple[Node, ...]] = {}

    def is_remembered(self, value: Node) -> bool:
        return not follows(value) or (self._varies(value) and not self.leaves(value))

    def leaves(self, value: Node) -> tuple[Node, ...]:
        """Whose places it takes after a commit, in the order of its channels; empty if none."""
        if not (follows(value) and self._varies(value)):
            return ()
        if value not in self._leaves:
            self._leaves[value] = self._find(value)
        return self._leaves[value]

    def _varies(self, value: Node) -> bool:
        if value.target is norms.group_norm:
            return False  # several results: the first of them, a node of its own, varies
        if value.target is operator.getitem and self._updated:
            return True
        value = value.all_input_nodes[0] if value.target is operator.getitem else value
        sources = grid_sources(value)
        return any(facts(arg).varies for arg in value.all_input_nodes if arg not in sources)

    def _find(self, value: Node) -> tuple[Node, ...]:
        chain, leaves = self._chain(value)
        behind = [*chain[1:], *leaves]
        is_normed = any(node.target is norms.group_norm for node in chain)
        if not is_normed and all(len(_readers(node)) == 1 for node in behind):
            return ()  # remembering it costs what remembering its leaves did
        rules = map(find_rule, chain)
        if any(rule and rule.geometry(node) for rule, node in zip(rules, chain, strict=True)):
            return ()
        return leaves if _fits(value, leaves) else ()

    def _chain(self, value: Node) -> tuple[list[Node], tuple[Node, ...]]:
        """What has to be computed for ``value``, itself first, and of what."""
        chain, leaves = [value], list[Node]()
        for source in grid_sources(value):
            if self.is_remembered(source):
                leaves.append(source)
            else:
                more, own = self._chain(source)
                chain.extend(more)
                leaves.extend(own)
        return chain, tuple(leaves)


def _fits(value: Node, leaves: tuple[Node, ...]) -> bool:
    """Do the leaves, joined by channels, have the arrangement and dtype of ``value``?"""
    layout = layout_of(value)
    if len(set(leaves)) < len(leaves) or {_dtype(leaf) for leaf in leaves} != {_dtype(value)}:
        return False
    if len(leaves) == 1:
        return bool(facts(leaves[0]).layout == layout)
    if not (layout.is_image and len(layout.dims) == 4):
        return False
    channels = layout.shape[1]
    alike = all(
        isinstance(own := facts(leaf).layout, Layout)
        and len(own.dims) == 4
        and own.replace(1, channels) == layout
        for leaf in leaves
    )
    return alike and sum(shape_of(leaf)[1] for leaf in leaves) == channels


def _dtype(node: Node) -> torch.dtype:
    value: torch.Tensor = node.meta["val"]
    return value.dtype


def _readers(node: Node) -> list[Node]:
    """The nodes of the model that read it, and its results if it is an output."""
    return [user for user in node.users if "val" in user.meta or user.op == "output"]
