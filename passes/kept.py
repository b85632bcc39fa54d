"""Which weights have N:M sparsity, and how much of them is left."""

from __future__ import annotations

import torch
from sparsify.codegen.nm.pattern import NM
from torch.fx import Node

aten = torch.ops.aten
MASKED = torch.ops.sparsify.nm_masked.default
_VIEWS = (aten.view, aten.reshape, aten.unsqueeze, aten.squeeze, aten.flatten)
_PARAMETRIZED = ".parametrizations.weight.original"


def mask_of(weight: Node) -> Node | None:
    """The node ``sparsify::nm_masked`` that made it, also through views that leave outputs and
    inputs apart."""
    if weight.target is MASKED:
        return weight
    if getattr(weight.target, "overloadpacket", None) not in _VIEWS:
        return None
    before = weight.all_input_nodes[0]
    old, new = (tuple(node.meta["val"].shape) for node in (before, weight))
    return mask_of(before) if old[:2] == new[:2] else None


def pattern_of(mask: Node) -> NM:
    """What is kept."""
    n, m, v = mask.args[1:4]
    assert isinstance(n, int) and isinstance(m, int) and isinstance(v, int)
    return NM(n, m, v)


def layer_of(mask: Node) -> str:
    """The layer of the model whose parameter is masked; empty if that is no parameter."""
    (weight,) = mask.all_input_nodes
    return str(weight.target).removesuffix(_PARAMETRIZED) if weight.op == "get_attr" else ""
