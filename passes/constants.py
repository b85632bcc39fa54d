"""What weights alone determine: computed once, and again when weights change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sparsify.codegen.ambient import as_captured
from torch import Tensor
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves

from .base import Pass
from .evaluate import device_of
from .facts import ANYWHERE, note
from .kept import layer_of, mask_of, pattern_of
from .rules.base import is_pure


@dataclass(frozen=True)
class Constants(Pass):
    """Puts what no input reaches into the stage "constants": weights behind a norm of their own,
    merged adapters, resized embeddings of positions. Computed once, and again when weights change;
    in another stage each run would compute them, and each baseline keep them.

    Weights and their views, which cost nothing, belong to every stage, and so do results of the
    model, which are the caller's. Of weights with N:M sparsity it notes what they keep.
    """

    requires: ClassVar[tuple[str, ...]] = ("canonical",)
    ensures: ClassVar[tuple[str, ...]] = ("constants",)

    def __call__(self, module: GraphModule) -> GraphModule:
        run, weights = Interpreter(module, garbage_collect_values=False), set[int]()
        with as_captured(device_of(module)):
            for node in _constants(module.graph):
                run.env[node] = value = run.run_node(node)
                if node.op == "get_attr":
                    weights |= _memory(value)
                is_result = any(user.op == "output" for user in node.users)
                is_free = is_result or node.op == "get_attr" or bool(_memory(value) & weights)
                note(node, stage=ANYWHERE if is_free else "constants")
                if (mask := mask_of(node)) is not None:
                    note(node, kept=pattern_of(mask), layer=layer_of(mask))
        return module


def _constants(graph: Graph) -> dict[Node, None]:
    """What no input reaches and nothing is drawn for, in the order of the graph."""
    found: dict[Node, None] = {}
    for node in graph.nodes:
        if is_pure(node) and all(arg in found for arg in node.all_input_nodes):
            found[node] = None
    return found


def _memory(value: object) -> set[int]:
    """Where it lies; known on the meta device too."""
    leaves = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
    return {leaf.untyped_storage()._cdata for leaf in leaves}
