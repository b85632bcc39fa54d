"""Which values of a model steps of a sampling run may take over from earlier ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from sparsify.codegen.errors import ConfigError
from torch.fx import GraphModule, Node

from .base import Pass
from .facts import facts
from .layout import Grid
from .partition import Cut
from .rules.base import argument

Part = Literal["encoder", "deep"]

REUSE_CUTS = (
    Cut("key", "record", ("output", "reused")),
    Cut("reuse", "record", ("output",), takes=("reused",)),
)
"""key ``inputs -> outputs, reused values``; reuse ``inputs, reused values -> outputs``, which
computes what does not lead to these values alone."""


@dataclass(frozen=True)
class Reuse(Pass):
    """Declares the cut of a part: the values of the reused nodes that others read.

    "deep" is what lies on grids coarser than the picture's, and what these alone lead to
    (DeepCache). "encoder" is all up to the middle: the value that is joined with the first skip
    connection, or else the last one on the coarsest grid. A decoder is left that reads no picture
    (Faster Diffusion). Both are found by the grids of values, so a model has to have several.
    Raises :class:`ConfigError` for one that has not.
    """

    requires: ClassVar[tuple[str, ...]] = ("masks",)
    ensures: ClassVar[tuple[str, ...]] = ("reuse",)

    part: Part

    def __call__(self, module: GraphModule) -> GraphModule:
        edited = [node for node in module.graph.nodes if facts(node).edited]
        sizes = {node: math.prod(grid) for node in edited if (grid := _grid(node))}
        picture = max(size for node, size in sizes.items() if node.op == "placeholder")
        if min(sizes.values()) == picture:
            raise ConfigError(f"reuse={self.part!r}: the model has one resolution only")
        own = [node for node in edited if node.op == "call_function"]
        reused = _FINDERS[self.part](own, sizes, picture)
        cut = [node for node in reused if any(user not in reused for user in node.users)]
        values = {f"reused.{i}": {"record": node} for i, node in enumerate(cut)}
        module.meta["values"] = {**module.meta.get("values", {}), "reused": values}
        return module


def _deep(nodes: Sequence[Node], sizes: Mapping[Node, int], picture: int) -> dict[Node, None]:
    found: dict[Node, None] = {}
    for node in nodes:
        sources = [arg for arg in node.all_input_nodes if facts(arg).edited]
        if sizes.get(node, picture) < picture or all(arg in found for arg in sources):
            found[node] = None
    return found


def _encoder(nodes: Sequence[Node], sizes: Mapping[Node, int], picture: int) -> dict[Node, None]:
    reached = {middle := _middle(nodes, sizes)}
    for node in nodes:
        if any(arg in reached for arg in node.all_input_nodes):
            reached.add(node)
    return {node: None for node in nodes if node not in reached or node is middle}


def _middle(nodes: Sequence[Node], sizes: Mapping[Node, int]) -> Node:
    coarsest, place = min(sizes.values()), {node: i for i, node in enumerate(nodes)}
    low = [node for node in nodes if sizes.get(node) == coarsest]
    for node in nodes[place[low[0]] :]:
        joined = [arg for arg in node.all_input_nodes if arg in place]
        if _joins_channels(node) and len(joined) > 1:
            return max(joined, key=place.__getitem__)
    return low[-1]


def _joins_channels(node: Node) -> bool:
    layout = facts(node).layout
    if node.target is not torch.ops.aten.cat.default or layout is None or not layout.is_image:
        return False
    return bool(argument(node, "dim") % len(layout.dims) == 1)


_FINDERS: dict[str, Callable[[Sequence[Node], Mapping[Node, int], int], dict[Node, None]]] = {
    "deep": _deep,
    "encoder": _encoder,
}


def _grid(node: Node) -> Grid | None:
    layout = facts(node).layout
    return layout.grid if layout else None
