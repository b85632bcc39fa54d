"""Strides that the graphs, and operators that are not torch's, can rely on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsify.codegen import ops
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map_only

from .base import Pass

_TAKE_ANY_STRIDES = ("aten", "prims", "sparsify")


@dataclass(frozen=True)
class Contiguous(Pass):
    """Operators of other libraries read contiguous tensors: copies that made them so are gone."""

    requires: ClassVar[tuple[str, ...]] = ("graphs",)
    graphs: ClassVar[tuple[str, ...]] = ("record", "conditions", "update")

    def __call__(self, module: GraphModule) -> GraphModule:
        for node in [node for node in module.graph.nodes if _is_foreign(node)]:
            for x in node.all_input_nodes:
                node.replace_input_with(x, _contiguous(x, node))
        return module


@dataclass(frozen=True)
class ContiguousResults(Pass):
    """So are the results of graphs that others read: an update compiled for what was recorded also
    takes what a commit, or other conditions, leave."""

    requires: ClassVar[tuple[str, ...]] = ("graphs",)
    graphs: ClassVar[tuple[str, ...]] = ("record", "conditions", "commit")

    def __call__(self, module: GraphModule) -> GraphModule:
        output = module.graph.output_node()
        copies = {node: _contiguous(node, output) for node in output.all_input_nodes}
        output.args = tree_map_only(Node, copies.__getitem__, output.args)
        return module


def _is_foreign(node: Node) -> bool:
    target = node.target
    return isinstance(target, OpOverload) and target.namespace not in _TAKE_ANY_STRIDES


def _contiguous(x: Node, user: Node) -> Node:
    if not isinstance(x.meta.get("val", Tensor()), Tensor):
        return x
    with user.graph.inserting_before(user):
        new = user.graph.call_function(ops.contiguous, (x,))
    new.meta.update(x.meta)
    return new
