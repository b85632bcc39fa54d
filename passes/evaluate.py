"""The values of what weights alone determine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterable
from itertools import count
from weakref import WeakValueDictionary

import torch
from sparsify.codegen.ambient import as_captured
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.fx.node import map_arg

from .graphs import NamedGraph

Evaluate = Callable[[NamedGraph], tuple[Tensor, ...]]
"""The results of a graph that reads weights alone."""
_OTHERS = count()


class Shared:
    """Prepacked weights and other constants that the programs of one model share: each is made
    once, and lives as long as one of them has it."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()

    def evaluated(
        self, constants: NamedGraph, weights: Iterable[Tensor], state: Hashable
    ) -> tuple[Tensor, ...]:
        """``state`` tells the contents and places of ``weights``, the model's, from others."""
        keys = _keys(constants, weights)
        results: list[Node] = list(constants.graph.output_node().all_input_nodes)
        known = {node: self._known.get((state, keys[node])) for node in results}
        run = Interpreter(constants.module, garbage_collect_values=False)
        with as_captured(device_of(constants.module)):
            for node in _needed([node for node, value in known.items() if value is None]):
                run.env[node] = run.run_node(node)
        for node, value in known.items():
            known[node] = value = run.env[node] if value is None else value
            self._known[state, keys[node]] = value
        names: tuple[Node, ...] = constants.graph.output_node().args[0]  # type: ignore[assignment]
        return tuple(known[node] for node in names)  # type: ignore[misc]


def evaluated(constants: NamedGraph) -> tuple[Tensor, ...]:
    """For one program alone."""
    return Shared().evaluated(constants, (), None)


def device_of(module: torch.nn.Module) -> str:
    """Where the weights lie."""
    tensors = (*module.parameters(), *module.buffers())
    return next((tensor.device.type for tensor in tensors), "cpu")


def _keys(constants: NamedGraph, weights: Iterable[Tensor]) -> dict[Node, str]:
    """How a node is made of weights; what else a graph holds is of no other one."""
    own = {weight.data_ptr() for weight in weights}
    run, keys = Interpreter(constants.module), dict[Node, str]()
    for node in constants.graph.nodes:
        if node.op == "get_attr":
            value = run.fetch_attr(node.target)
            is_weight = value.data_ptr() in own
            about = (value.data_ptr(), value.shape, value.stride(), value.dtype, value.device)
            said = repr(about if is_weight else next(_OTHERS))
        else:
            said = repr((node.target, *map_arg((node.args, node.kwargs), keys.__getitem__)))
        keys[node] = hashlib.sha256(said.encode()).hexdigest()
    return keys


def _needed(results: Iterable[Node]) -> list[Node]:
    """What ``results`` are made of, in the order of the graph."""
    needed, stack = dict[Node, None](), list(results)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed[node] = None
            stack.extend(node.all_input_nodes)
    return sorted(needed)
