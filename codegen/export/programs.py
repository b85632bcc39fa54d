"""Graphs as pure functions of named tensors, weights among them, and as exported programs.

So all programs of a folder share one file of weights, whatever their format.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, GraphModule, Interpreter, Node
from torch.fx.experimental import _config as symbolic_config

from ..errors import ExportError
from ..lifting import lifted
from ..nm import make_stock
from ..operators import export
from ..prepack import make_plain
from ..tracing import alone

_any_size = symbolic_config.patch  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Pure:
    """A graph that takes ``inputs``, then ``weights``, and returns ``outputs``, all by name."""

    name: str
    module: GraphModule
    inputs: tuple[str, ...]
    weights: tuple[str, ...]
    outputs: tuple[str, ...]


def pure(
    name: str,
    module: GraphModule,
    inputs: Sequence[str],
    outputs: Sequence[str],
    weights: Mapping[str, str],
) -> Pure:
    """``module``, whose placeholders are ``inputs`` and results ``outputs``, with its attributes as
    arguments, under the names that ``weights`` gives them.

    What is not read is left out, and no weight has a custom format. Results are contiguous: nobody
    has to agree about the layout of what is handed on.
    """
    graph, placeholders, by_name = lifted(module, weights.__getitem__)
    names = dict(zip(placeholders, inputs, strict=True))
    output = graph.output_node()
    results: Any = output.args[0]
    with graph.inserting_before(output):
        output.args = (tuple(_contiguous(graph, node) for node in results),)
    make_plain(graph)
    make_stock(graph)
    graph.eliminate_dead_code()
    names = _read(graph, names)
    taken = _read(graph, {node: weight for weight, node in by_name.items()})
    module = GraphModule(module, graph)
    return Pure(name, module, tuple(names.values()), tuple(taken.values()), tuple(outputs))


def program(
    function: Pure, values: Mapping[str, Tensor], dynamic: Mapping[str, int] = {}
) -> ExportedProgram:
    """``function`` as a program of stock operators, for tensors like ``values``.

    ``dynamic`` has the axes whose size stays unknown. Raises :class:`ExportError`.
    """
    names = (*function.inputs, *function.weights)
    examples = tuple(values[name].detach().contiguous() for name in names)
    shapes = tuple({dynamic[n]: Dim.AUTO} if n in dynamic else None for n in names)
    try:
        # No size is 1 or not: where it matters, what is right for all sizes is traced.
        with quiet(), alone(), export(), torch.no_grad(), _any_size(backed_size_oblivious=True):
            exported = torch.export.export(
                _Named(function.module),
                (examples,),
                dynamic_shapes=(shapes,) if names else None,
                strict=False,
            )
    except Exception as error:
        raise ExportError(
            f"the {function.name} graph cannot be exported: {reason(error)}"
        ) from error
    # What guards say about sizes is that the general path was taken; it holds for 1 as well.
    exported._guards_code.clear()
    _require_stock(function.name, exported)
    _require_unknown(function, exported, dynamic)
    return exported


class _Named(torch.nn.Module):
    """Runs a graph node by node, so that a failure names its node."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__()
        self._run = Interpreter(module).run

    def forward(self, values: tuple[Tensor, ...]) -> Any:
        return self._run(*values)


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, exporters do not warn about themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.disable(before)


def reason(error: BaseException) -> str:
    """The first lines of an error and of what caused it, and the node at which it arose."""
    found = []
    cause: BaseException | None = error
    while cause is not None:
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        nodes = [line for line in lines if line.startswith("While executing")]
        found += [*lines[:1], *nodes[:1]] or [type(cause).__name__]
        cause = cause.__cause__
    return "; ".join(found)


def _contiguous(graph: Graph, node: Node) -> Node:
    return graph.call_method("contiguous", (node,))


def _read(graph: Graph, names: dict[Node, str]) -> dict[Node, str]:
    """The placeholders that something reads; the others are erased."""
    unread = [node for node in names if not node.users]
    for node in unread:
        graph.erase_node(node)
    return {node: name for node, name in names.items() if node not in unread}


def _require_stock(name: str, exported: ExportedProgram) -> None:
    """Raises :class:`ExportError` for an operator that a process without us does not have."""
    for node in exported.graph.nodes:
        if node.op == "call_function" and str(node.target).startswith("sparsify."):
            raise ExportError(
                f"the {name} graph has {node.target} at {node.name}, a custom operator: "
                "its wrapper has to call the reference while sparsify.codegen.operators.exporting()"
            )


def _require_unknown(function: Pure, exported: ExportedProgram, dynamic: Mapping[str, int]) -> None:
    """Raises :class:`ExportError` if a size that has to stay unknown was fixed."""
    placeholders = exported.graph.find_nodes(op="placeholder")
    for name, node in zip(function.inputs, placeholders, strict=False):
        size = node.meta["val"].shape[dynamic[name]] if name in dynamic else None
        if isinstance(size, int):
            raise ExportError(
                f"the {function.name} graph holds for one number of sites only: {name} was fixed "
                f"to {size} rows by an operator that asks for its size"
            )
