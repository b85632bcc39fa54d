"""Products of the record and dense graphs with weights that keep N of M inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from sparsify.codegen import prepack, products
from sparsify.codegen.geometry import reads_own
from torch import Tensor
from torch.fx import GraphModule, Node

from .base import Pass
from .costs import Costs
from .facts import facts, note
from .rules.base import argument, source
from .rules.conv import window

aten = torch.ops.aten


@dataclass(frozen=True)
class ListedProducts(Pass):
    """Where the model multiplies with a weight that keeps N of M inputs, graphs of the stage
    "record" read only these, as updates do, if there is a kernel that is then faster than the
    library's, however many rows there are (:meth:`.Costs.list_format`).

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
        if is_linear:
            rows = node.meta["val"].shape[:-1].numel()
            format = self.costs.linear_list_format(weight, rows)
        else:
            format = self.costs.whole_format(node, weight, argument(node, "groups"))
        if format is None:
            return None
        own = None if is_linear else tuple(window(node, source(node)))
        if own is None or reads_own(own):
            stored = _stored(weight, format, prepack.prepack_linear)
        else:
            stored = _stored(weight, format, prepack.prepack_conv, 1, False)
        target: Callable[..., Tensor] = products.linear if is_linear else products.whole_conv
        args: tuple[Any, ...] = (source(node), stored, argument(node, "bias"))
        args = args if own is None else (*args, own)
        with node.graph.inserting_after(node):
            new = node.graph.call_function(target, args, {"format": format})
        new.meta.update(node.meta)
        note(new, computes=node)
        return new


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
