"""Which weights have N:M sparsity, and how much of them is left."""

from __future__ import annotations

import torch
from sparsify.codegen.nm.pattern import NM
from torch.fx import Node

from .facts import facts

aten = torch.ops.aten
_MASKED = torch.ops.sparsify.nm_masked.default
_VIEWS = (aten.view, aten.reshape, aten.unsqueeze, aten.squeeze, aten.flatten)


def kept_of(weight: Node) -> NM | None:
    """What ``sparsify::nm_masked`` keeps, also through views that leave outputs and inputs apart;
    of a node before, :class:`.Facts` have it."""
    if weight.target is _MASKED:
        n, m, v = weight.args[1:4]
        assert isinstance(n, int) and isinstance(m, int) and isinstance(v, int)
        return NM(n, m, v)
    if getattr(weight.target, "overloadpacket", None) not in _VIEWS:
        return None
    before = weight.all_input_nodes[0]
    old, new = (tuple(node.meta["val"].shape) for node in (before, weight))
    return facts(before).kept if old[:2] == new[:2] else None
