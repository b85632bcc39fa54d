"""What the fastest update would take: its arithmetic, or reading its weights and tables."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.fx import GraphModule


@dataclass(frozen=True)
class Rates:
    """MACs a second that the dense model reaches, and bytes a second that memory gives."""

    macs: float
    bytes: float

    def floor(self, macs: float, size: float) -> tuple[float, str]:
        """Seconds, and which of ``"macs"`` and ``"bytes"`` it takes them for."""
        arithmetic, memory = macs / self.macs, size / self.bytes
        return (arithmetic, "macs") if arithmetic >= memory else (memory, "bytes")


def size(tensor: Tensor) -> int:
    """Bytes; oneDNN's own tensors do not tell theirs."""
    return tensor.numel() * tensor.element_size()


def weight_bytes(graph: GraphModule) -> int:
    """Of the parameters and constants that a graph reads, each once."""
    names = {node.target for node in graph.graph.nodes if node.op == "get_attr" and node.users}
    return total(operator.attrgetter(str(name))(graph) for name in names)


def total(values: Iterable[Any]) -> int:
    """Bytes of the tensors among ``values``, each once."""
    tensors = {id(value): value for value in values if isinstance(value, Tensor)}
    return sum(map(size, tensors.values()))
