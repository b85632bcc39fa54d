"""What inductor emitted for a graph, and how to call it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from torch import Tensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Size:
    """The size of input ``position`` along ``dim``."""

    position: int
    dim: int


@dataclass(frozen=True)
class Emission:
    """A Python source with Triton kernels and a ``call``, which takes flat arguments."""

    source: str
    arguments: tuple[int | str | Size, ...]
    """Of ``call``: the position of an input, the name of a weight, or the size of an input."""

    def bind(self, module: GraphModule, inputs: Sequence[Any]) -> list[Tensor | int]:
        """The arguments of ``call`` that stand for ``module(*inputs)``."""

        def value(argument: int | str | Size) -> Any:
            if isinstance(argument, Size):
                return inputs[argument.position].shape[argument.dim]
            return inputs[argument] if isinstance(argument, int) else weights[argument]

        weights = attributes(module)
        return [value(argument) for argument in self.arguments]


def attributes(module: GraphModule) -> dict[str, Tensor]:
    """The tensors that the graph reads from its module."""
    names = dict.fromkeys(n.target for n in module.graph.nodes if n.op == "get_attr")
    values = {str(name): attrgetter(str(name))(module) for name in names}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def unflatten(module: GraphModule, inputs: Sequence[Any], results: Sequence[Tensor]) -> Any:
    """What ``module(*inputs)`` returns, from the flat ``results`` of an emitted ``call``.

    A compiled graph returns each computed value once; inputs that are handed on and constants
    are none of its business.
    """
    output = module.graph.output_node().args[0]
    nodes = dict.fromkeys(leaf for leaf in tree_leaves(output) if isinstance(leaf, Node))
    values = dict(zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True))
    computed = [node for node in nodes if node not in values]
    values.update(zip(computed, results, strict=True))
    return tree_map_only(Node, values.__getitem__, output)
