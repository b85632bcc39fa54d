"""N:M sparse weights as one operator of the dense ones, ``sparsify::nm_masked``.

A graph so shows which weights are sparse, and how: passes may pack them for a kernel that skips
what is zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph

from ..operators import declare
from . import reference
from .reference import nm_mask

__all__ = ["make_stock", "nm_mask", "nm_masked"]


def nm_masked(weight: Tensor, n: int, m: int, v: int = 1, decay: float = 0.0) -> Tensor:
    """weight [O, I, *taps] with zeros where :func:`nm_mask` is false.

    The gradient goes straight through, and draws weights that are not kept towards zero: for g of
    the result it is ``g + decay * (1 - mask) * weight`` (SR-STE, Zhou et al., arXiv 2102.04010).
    """
    masked: Tensor = torch.ops.sparsify.nm_masked(weight, n, m, v, decay)
    return masked


def _fake(weight: Tensor, n: int, m: int, v: int, decay: float) -> Tensor:
    return torch.empty_like(weight)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    weight, _, _, _, ctx.decay = inputs
    ctx.save_for_backward(weight, output)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    weight, masked = ctx.saved_tensors
    # A weight of zero counts as kept: it decays to what it is.
    decayed = ctx.decay * (masked != weight).to(weight.dtype) * weight
    return grad + decayed, None, None, None, None


_SCHEMA = "(Tensor weight, int n, int m, int v, float decay) -> Tensor"
declare("nm_masked", _SCHEMA, reference.nm_masked, _fake)
torch.library.register_autograd("sparsify::nm_masked", _backward, setup_context=_remember)


def make_stock(graph: Graph) -> None:
    """For another process: the masks in operators that it has too."""
    masked: Any = torch.ops.sparsify.nm_masked.default
    for node in graph.find_nodes(op="call_function", target=masked):
        node.target = reference.nm_masked
