"""Attention of packed queries over overlaid keys and values, as one operator.

``sparsify::overlay_attention`` reads the keys of active sites from the packed tensors and the
others from the baseline, in place; on CUDA it is a Triton kernel (:mod:`.triton`), elsewhere the
reference.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..operators import KERNEL_DTYPES, declare
from ..ops import repeated
from .reference import reference

_LARGEST_HEAD = 256


def key_bias(sites: Tensor, positions: int) -> Tensor:
    """What :func:`overlay_attention` adds to its scores, float32 [positions + S].

    -inf at the baseline keys that the ascending ``sites`` [S] replace, and at repetitions of a
    site in a padded table; 0 elsewhere. One serves all attentions over the same sites.
    """
    zeros = torch.zeros(positions, dtype=torch.float32, device=sites.device)
    stale = zeros.scatter(0, sites, float("-inf"))
    again = torch.where(repeated(sites), float("-inf"), 0.0).to(torch.float32)
    return torch.cat([stale, again])


def overlay_attention(
    query: Tensor,
    base_key: Tensor,
    base_value: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
) -> Tensor:
    """``softmax(query @ keys.T * scale + bias) @ values`` over baseline and packed keys.

    query [N, h, Sq, d]; base_key [N, h, L, d]; base_value [N, h, L, dv]; key [N, h, S, d];
    value [N, h, S, dv]; bias from :func:`key_bias`, float32 [L + S], 0 for some key. Keys that
    the bias leaves out must be finite. Returns [N, h, Sq, dv], stored as [N, Sq, h, dv].
    """
    operands = (query, base_key, base_value, key, value, bias, scale)
    out: Tensor = torch.ops.sparsify.overlay_attention(*operands)
    return out


def _on_cuda(query: Tensor, base_key: Tensor, base_value: Tensor, *rest: object) -> Tensor:
    if query.dtype not in KERNEL_DTYPES or max(query.shape[3], base_value.shape[3]) > _LARGEST_HEAD:
        return reference(query, base_key, base_value, *rest)  # type: ignore[arg-type]
    from .triton import launch

    return launch(query, base_key, base_value, *rest)  # type: ignore[arg-type]


def _fake(query: Tensor, base_key: Tensor, base_value: Tensor, *rest: object) -> Tensor:
    batch, heads, queries, _ = query.shape
    return query.new_empty((batch, queries, heads, base_value.shape[3])).transpose(1, 2)


_SCHEMA = (
    "(Tensor query, Tensor base_key, Tensor base_value, Tensor key, Tensor value, Tensor bias, "
    "float scale) -> Tensor"
)
# The kernel takes heads in any order of memory: nothing is copied for it.
_TAGS = (torch.Tag.flexible_layout,)
declare("overlay_attention", _SCHEMA, reference, _fake, _on_cuda, _TAGS)
