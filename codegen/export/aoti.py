"""Programs as AOTInductor packages: native code, for Python and C++."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.fx import Graph, Node

from ..errors import ExportError
from .programs import Pure, quiet, reason
from .pt2 import Run


def write(
    exported: ExportedProgram, function: Pure, path: Path, values: Mapping[str, Tensor]
) -> None:
    """Compiles a package, and runs it once on ``values`` to see that its results are contiguous.

    Its metadata name the arguments and results, for C++ to find. Raises :class:`ExportError`.
    """
    names = {kind: "\n".join(getattr(function, kind)) for kind in ("inputs", "weights", "outputs")}
    configs: dict[str, Any] = {
        "aot_inductor.metadata": names,
        "post_grad_custom_post_pass": _OwnMemory(),
    }
    try:
        with quiet():
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs=configs
            )
        arguments = (*function.inputs, *function.weights)
        with torch.no_grad():
            results = read(path)([values[name].contiguous() for name in arguments])
    except Exception as error:
        raise ExportError(
            f"AOTInductor cannot compile the {function.name} graph: {reason(error)}. "
            'format="pt2" needs no compiler'
        ) from error
    for name, result in zip(function.outputs, results, strict=True):
        if not result.is_contiguous():
            raise ExportError(
                f"AOTInductor returns {name} of the {function.name} graph with the strides "
                f"{result.stride()}, which no other graph takes. Report this; "
                'format="pt2" has no such limits'
            )


def read(path: Path) -> Run:
    """Loads the code of a package into this process."""
    package = torch._inductor.aoti_load_package(str(path))
    return lambda tensors: package(tuple(tensors))


def _is_view(node: Any) -> bool:
    return isinstance(node, Node) and isinstance(node.target, OpOverload) and node.target.is_view


class _OwnMemory(CustomGraphPass):
    """Copies results that are views, late enough that no simplification drops the copies.

    Inductor keeps the order of a view's strides, not the strides: what is viewed may be written
    straight into a slice of a concatenation. Who reads the result next expects it contiguous.
    """

    def __call__(self, graph: Graph) -> None:
        output = graph.output_node()
        results: Any = output.args[0]
        if not isinstance(results, tuple | list):
            return  # of a graph within the graph
        copies = {}
        with graph.inserting_before(output):
            for node in dict.fromkeys(results):
                if _is_view(node):
                    copies[node] = graph.call_function(torch.ops.aten.clone.default, (node,))
                    copies[node].meta["val"] = node.meta["val"].clone()
        output.args = (tuple(copies.get(node, node) for node in results),)

    def uuid(self) -> Any:
        return get_hash_for_files((__file__,))
