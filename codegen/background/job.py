"""What is to be compiled, as text that another process reads."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import torch
from torch.fx import Graph, GraphModule

from ..lifting import lifted
from ..sources import of_machine, of_operators
from .graph_json import from_json, to_json
from .operand import Operand


@dataclass(frozen=True)
class Job:
    """A graph, and what it takes: the inputs that are ``read``, by index, then ``weights``, which
    are attributes of a module. Sizes that stay unknown are at least 1 and at most ``most``, if that
    is known."""

    graph: Graph
    operands: tuple[Operand, ...]
    most: int | None
    read: tuple[int, ...] = ()
    weights: tuple[str, ...] = ()

    @staticmethod
    def of(
        module: GraphModule, inputs: Sequence[Any], sizes: Mapping[int, int], most: int | None
    ) -> Job:
        """For calls of ``module`` like this one. ``sizes`` has the axes of inputs whose size stays
        unknown. Raises :class:`CompileError`."""
        graph, placeholders, weights = lifted(module)
        read = [i for i, node in enumerate(placeholders) if node.users]
        for node in placeholders:
            if not node.users:
                graph.erase_node(node)
        operands = [Operand.of(inputs[i], sizes.get(i)) for i in read]
        operands += [Operand.of(attrgetter(name)(module)) for name in weights]
        return Job(graph, tuple(operands), most, tuple(read), tuple(weights))

    @cached_property
    def text(self) -> str:
        """What is compiled, whatever its weights are called. Raises :class:`CompileError`."""
        operands = [operand.to_json() for operand in self.operands]
        return json.dumps({"graph": to_json(self.graph), "operands": operands, "most": self.most})

    @cached_property
    def key(self) -> str:
        """What code compiled for it is known by, on machines like this one."""
        parts = of_operators(), of_machine(), self.text
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @staticmethod
    def from_text(text: str) -> Job:
        own = json.loads(text)
        operands = tuple(map(Operand.from_json, own["operands"]))
        return Job(from_json(own["graph"]), operands, own["most"])

    def module(self) -> GraphModule:
        return GraphModule(torch.nn.Module(), self.graph)


def expected_seconds(graph: Graph) -> float:
    """How long one core takes to compile ``graph``: 0.1 s a node, measured with AVX-512."""
    return 0.1 * len(graph.nodes)
