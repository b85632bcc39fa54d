"""Memory order of a dense graph that runs as it stands, on a CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node

from .base import Pass
from .rules.base import aten

_CONVOLUTIONS = (aten.conv2d, aten.conv_transpose2d)


@dataclass(frozen=True)
class ChannelsLast(Pass):
    """Convolutions read maps in channels-last order, which what follows them keeps.

    A CPU's convolutions need not re-order such maps, and rows to keep are views of them (record
    over the dense run, 2 cores: GauGAN 1.43 -> 1.01, terrain 1.40 -> 1.22). Operators that do
    not take any strides are served by :class:`.Contiguous`, which has to come after.
    """

    requires: ClassVar[tuple[str, ...]] = ("graphs",)
    graphs: ClassVar[tuple[str, ...]] = ("record",)

    def __call__(self, module: GraphModule) -> GraphModule:
        graph = module.graph
        ordered: dict[Node, Node] = {}
        for node in list(graph.nodes):
            x = node.args[0] if _is_convolution(node) else None
            if isinstance(x, Node) and x.meta["val"].dim() == 4:
                if x not in ordered:
                    ordered[x] = _ordered(x, node)
                node.replace_input_with(x, ordered[x])
        return module


def _is_convolution(node: Node) -> bool:
    return getattr(node.target, "overloadpacket", None) in _CONVOLUTIONS


def _ordered(x: Node, user: Node) -> Node:
    with user.graph.inserting_before(user):
        new = user.graph.call_method("contiguous", (x,), {"memory_format": torch.channels_last})
    new.meta.update(x.meta)
    return new
