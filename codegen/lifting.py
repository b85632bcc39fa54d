"""Graphs as functions of their weights, too."""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import Tensor
from torch.fx import Graph, GraphModule, Node


def lifted(
    module: GraphModule, named: Callable[[str], str] = lambda name: name
) -> tuple[Graph, list[Node], dict[str, Node]]:
    """A copy of the graph of ``module`` that takes the tensors which it read as attributes behind
    its own arguments: each once, by the name that ``named`` gives an attribute. With it the
    placeholders of both.
    """
    graph, copies = Graph(), dict[Node, Node]()
    given = module.graph.find_nodes(op="placeholder")
    inputs = [graph.placeholder(f"input_{i}") for i in range(len(given))]
    copies |= dict(zip(given, inputs, strict=True))
    attributes = [node for node in module.graph.nodes if _is_tensor(module, node)]
    names = dict.fromkeys(named(str(node.target)) for node in attributes)
    weights = {name: graph.placeholder(f"weight_{i}") for i, name in enumerate(names)}
    copies |= {node: weights[named(str(node.target))] for node in attributes}
    for node in module.graph.nodes:
        if node.op != "output" and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    results: Any = module.graph.output_node().args[0]
    graph.output(tuple(copies[node] for node in results))
    return graph, inputs, weights


def _is_tensor(module: GraphModule, node: Node) -> bool:
    return node.op == "get_attr" and isinstance(attrgetter(str(node.target))(module), Tensor)
