"""The values of what weights alone determine."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Set
from itertools import count
from typing import Any
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
    """Prepacked weights and other constants that the programs of one wrapped model share: each is
    made once while a program has it."""

    def __init__(self) -> None:
        self._known: WeakValueDictionary[Hashable, Tensor] = WeakValueDictionary()

    def evaluated(
        self, constants: NamedGraph, weights: Iterable[Tensor], state: Hashable
    ) -> tuple[Tensor, ...]:
        """``state`` tells the contents and places of ``weights``, the model's, and the settings of
        torch from others."""
        own = {_place(weight) for weight in weights}
        keys = _keys(constants, own)
        names: Any = constants.graph.output_node().args[0]
        known = {node: self._known.get((state, keys[node])) for node in names}
        made = _run(constants, [node for node, value in known.items() if value is None])
        for node, value in made.items():
            known[node] = value
            if _place(value) not in own:  # a weight as it is would never be forgotten
                self._known[state, keys[node]] = value
        return tuple(one for node in names if (one := known[node]) is not None)


def evaluated(constants: NamedGraph) -> tuple[Tensor, ...]:
    """For one program alone."""
    return Shared().evaluated(constants, (), None)


def device_of(module: torch.nn.Module) -> str:
    """Where the weights lie."""
    tensors = (*module.parameters(), *module.buffers())
    return next((tensor.device.type for tensor in tensors), "cpu")


def _place(tensor: Tensor) -> Hashable:
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _keys(constants: NamedGraph, weights: Set[Hashable]) -> dict[Node, str]:
    """How a node is made of weights; what else a graph holds is of no other one."""
    run, keys = Interpreter(constants.module), dict[Node, str]()
    for node in constants.graph.nodes:
        if node.op == "get_attr":
            place = _place(run.fetch_attr(node.target))
            said = repr(place if place in weights else next(_OTHERS))
        else:
            said = repr((node.target, *map_arg((node.args, node.kwargs), keys.__getitem__)))
        keys[node] = hashlib.sha256(said.encode()).hexdigest()
    return keys


def _run(constants: NamedGraph, results: Iterable[Node]) -> dict[Node, Tensor]:
    """The values of ``results``; no other one outlives what reads it."""
    wanted = set(results)
    nodes = _needed(wanted)
    left = Counter(arg for node in nodes for arg in node.all_input_nodes)
    run = Interpreter(constants.module, garbage_collect_values=False)
    with as_captured(device_of(constants.module)):
        for node in nodes:
            run.env[node] = run.run_node(node)
            for arg in node.all_input_nodes:
                left[arg] -= 1
                if not left[arg] and arg not in wanted:
                    del run.env[arg]
    return {node: run.env[node] for node in wanted}


def _needed(results: Iterable[Node]) -> list[Node]:
    """What ``results`` are made of, in the order of the graph."""
    needed, stack = set[Node](), list(results)
    while stack:
        node = stack.pop()
        if node not in needed:
            needed.add(node)
            stack.extend(node.all_input_nodes)
    return sorted(needed)
