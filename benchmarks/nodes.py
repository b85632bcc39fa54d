"""An update node by node: how long each takes, eagerly, and how long it had to."""

from __future__ import annotations

import operator
import statistics
import time
from math import prod
from typing import Any

import torch
from sparsify.codegen import opaque, ops, products
from sparsify.passes.macs import macs
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.floors import Rates, total

_PRODUCTS = {
    products.gather_conv: (3, 1),
    products.linear: (1, -1),
    products.packed_linear: (1, 1),
}
"""Packed products: which argument is the weight, and which axis of the result the channels."""
_TAKES = {ops.take, ops.take_rows, torch.ops.aten.index_select.default}
"""Read of their first argument as much as they write."""


class _Timed(Interpreter):
    """Keeps the seconds of every call, and in its first run how much work it is."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module)
        self.seconds: dict[Node, list[float]] = {}
        self.work: dict[Node, tuple[int, int]] = {}

    def run_node(self, n: Node) -> Any:
        start = time.perf_counter()
        result = super().run_node(n)
        spent = time.perf_counter() - start
        n.meta["val"] = tree_map_only(Tensor, _shape, result)  # of this run, not of an earlier one
        if n.op == "call_function" and n.target is not operator.getitem:
            self.seconds.setdefault(n, []).append(spent)
            if n not in self.work:
                inputs = [self.env[source] for source in n.all_input_nodes]
                self.work[n] = _macs(n, result), _bytes(n, inputs, result)
        return result


def _shape(value: Tensor) -> Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _macs(node: Node, result: Any) -> int:
    """Of a node whose sources know their shapes."""
    if node.target in _PRODUCTS:
        index, axis = _PRODUCTS[node.target]
        weight: Any = node.args[index]
        return int(result.numel() // result.shape[axis] * weight.meta["val"].numel())
    if node.target is opaque.attention:
        query, key = (node.all_input_nodes[index].meta["val"].shape for index in (0, 1))
        return prod(query[:-1]) * int(key[-2]) * int(query[-1] + result.shape[-1])
    if node.target is opaque.matmul:
        first: Any = node.args[0]
        return prod(result.shape) * int(first.meta["val"].shape[-1])
    return macs(node)


def _bytes(node: Node, inputs: list[Any], result: Any) -> int:
    """Read and written; 0 for a view."""
    read, written = tree_leaves(inputs), tree_leaves(result)
    places = {_place(value) for value in read}
    if all(_place(value) in places for value in written):
        return 0
    if node.target in _TAKES:
        read = [*written, *read[1:]]
        return total(read) + total(written)
    return total(read) + total(written)


def _place(value: Any) -> int:
    """Where the memory of a tensor lies."""
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else id(value)


def measure_nodes(
    module: GraphModule, inputs: tuple[Any, ...], rates: Rates, rounds: int
) -> list[dict[str, Any]]:
    """A row for each call, those that lose most time to their floor first.

    Bytes are counted as if they came from memory: where they are in the cache, a node can be
    below its floor.
    """
    timed = _Timed(module)
    for _ in range(rounds + 1):
        timed.run(*inputs)
    rows = [_row(n, timed.seconds[n][1:], timed.work[n], rates) for n in timed.seconds]
    return sorted(rows, key=lambda row: -row["lost_ms"])


def _row(node: Node, seconds: list[float], work: tuple[int, int], rates: Rates) -> dict[str, Any]:
    median = statistics.median(seconds)
    floor, by = rates.floor(*work)
    return {
        "node": node.name,
        "operator": getattr(node.target, "__name__", str(node.target)),
        "module": _module(node),
        "macs": work[0],
        "bytes": work[1],
        "ms": median * 1e3,
        "floor_ms": floor * 1e3,
        "floor_by": by,
        "lost_ms": (median - floor) * 1e3,
    }


def _module(node: Node) -> str:
    """The path, in the user's model, of the module that the node stems from."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return str(paths[-1]) if paths else ""
