"""Attention in its spellings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.steps import (
    CONTEXT,
    Inputs,
    Lambda,
    Maker,
    Shape,
    Step,
    divisor,
)


def _heads(x: Tensor, heads: int) -> Tensor:
    """[N, L, C] -> [N, heads, L, C / heads]."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def _attend(kind: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T) v in one of its spellings; all [N, heads, L, d]."""
    if kind == "sdpa":
        return F.scaled_dot_product_attention(q, k, v)
    scale = q.shape[-1] ** -0.5
    if kind == "matmul":
        return ((q @ k.transpose(-1, -2)) * scale).softmax(-1) @ v
    if kind == "einsum":
        scores = torch.einsum("nhid,nhjd->nhij", q, k) * scale
        return torch.einsum("nhij,nhjd->nhid", scores.softmax(-1), v)
    flat = [part.flatten(0, 1) for part in (q, k, v)]
    if kind == "bmm":
        scores = torch.bmm(flat[0] * scale, flat[1].transpose(1, 2))
    else:
        base = flat[0].new_zeros(flat[0].shape[0], flat[0].shape[1], flat[1].shape[1])
        scores = torch.baddbmm(base, flat[0], flat[1].transpose(1, 2), beta=0, alpha=scale)
    return torch.bmm(scores.softmax(-1), flat[2]).unflatten(0, q.shape[:2])


@dataclass(frozen=True)
class Attention(Step):
    """A residual block: norm, attention of ``source`` ("self" or "cross"), projection."""

    kind: str
    source: str
    heads: int

    def build(self, shape: Shape, skips: list[Shape], make: Maker) -> nn.Module:
        channels = shape.channels
        heads = divisor(channels, self.heads)
        other = channels if self.source == "self" else CONTEXT[1]
        parts = [nn.LayerNorm(channels, eps=1e-3), nn.Linear(channels, channels)]
        parts += [nn.Linear(other, 2 * channels), nn.Linear(channels, channels)]
        is_self = self.source == "self"

        def attend(
            inputs: Inputs, norm: nn.Module, query: nn.Module, both: nn.Module, out: nn.Module
        ) -> Tensor:
            tokens = inputs.x.flatten(2).transpose(1, 2)
            y = norm(tokens)
            keys, values = both(y if is_self else inputs.context).chunk(2, -1)
            mixed = _attend(self.kind, *(_heads(part, heads) for part in (query(y), keys, values)))
            tokens = tokens + out(mixed.transpose(1, 2).flatten(2))
            return tokens.transpose(1, 2).unflatten(2, inputs.x.shape[2:])

        return Lambda(attend, *(make.fill(part) for part in parts))


ATTENTION = st.builds(
    Attention,
    st.sampled_from(["sdpa", "matmul", "einsum", "bmm", "baddbmm"]),
    st.sampled_from(["self", "cross"]),
    st.sampled_from([1, 2]),
)
