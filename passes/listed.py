"""Products of the record and dense graphs with weights that keep N of M inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from sparsify.codegen import prepack, products
from torch import Tensor
from torch.fx import GraphModule, Node

from .base import Pass
from .costs import Costs
from .facts import facts, note
from .rules.base import argument, pair, shape_of, source

aten = torch.ops.aten


@dataclass(frozen=True)
class ListedProducts(Pass):
    """Where the model multiplies with a weight that keeps the same inputs for 16 outputs, graphs of
    the stage "record" read only these inputs, as updates do: by a kernel that is then faster than
    the library's, however many rows there are.

    Nodes of the model stay as they are; :class:`.Partition` takes the others instead.
    """

    requires: ClassVar[tuple[str, ...]] = ("packed",)

    costs: Costs = field(default_factory=Costs)

    def __call__(self, module: GraphModule) -> GraphModule:
        nodes = [node for node in module.graph.nodes if facts(node).stage == "record"]
        made = {node: new for node in nodes if (new := self._made(node)) is not None}
        module.meta["products"] = made
        return module

    def _made(self, node: Node) -> Node | None:
        if node.target not in (aten.conv2d.default, aten.linear.default):
            return None
        weight, is_linear = source(node, 1), node.target is aten.linear.default
        width, groups = shape_of(weight)[0], argument(node, "groups", 1)
        if not self.costs.is_listed(weight, width, groups):
            return None
        if not is_linear and not self.costs.lists_all(node, weight, groups):
            return None
        format = self.costs.conv_format(weight, width)
        window = None if is_linear else _window(node)
        if window is None or products.reads_own(window):
            stored = _stored(weight, format, prepack.prepack_linear)
        else:
            stored = _stored(weight, format, prepack.prepack_conv, groups, False)
        target: Callable[..., Tensor] = products.linear if is_linear else products.whole_conv
        args: tuple[Any, ...] = (source(node), stored, argument(node, "bias"))
        args = args if window is None else (*args, window)
        with node.graph.inserting_after(node):
            new = node.graph.call_function(target, args, {"format": format})
        new.meta.update(node.meta)
        note(new, computes=node)
        return new


def _window(node: Node) -> tuple[tuple[int, int], ...]:
    """The fields of a :class:`sparsify.codegen.geometry.Window`."""
    grids = (shape_of(part)[-2:] for part in (source(node), node, source(node, 1)))
    stride, dilation = (pair(argument(node, name)) for name in ("stride", "dilation"))
    padding = pair(argument(node, "padding"), (0, 0))
    return (*((rows, columns) for rows, columns in grids), stride, padding, dilation)


def _stored(weight: Node, format: str, function: Callable[..., Tensor], *form: Any) -> Node:
    """The prepacked weight: the one of the update, if it has that, in front of both."""
    args: tuple[Any, ...] = (weight, *form)
    kwargs: dict[str, Any] = {"format": format}
    for user in weight.users:
        if user.target is function and (user.args, user.kwargs) == (args, kwargs):
            weight.append(user)
            return user
    with weight.graph.inserting_after(weight):
        stored = weight.graph.call_function(function, args, kwargs)
    note(stored, stage="constants")
    return stored
