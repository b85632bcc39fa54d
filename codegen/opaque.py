"""The library's operators that inductor must not look into: its lowerings have to know how many
sites are active."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .operators import declare, exporting


def matmul(first: Tensor, second: Tensor) -> Tensor:
    """``first @ second``, of which one is packed.

    Opaque to inductor, whose own lowering on CPU has to know whether there is a single site.
    """
    if exporting():
        return first @ second
    out: Tensor = torch.ops.sparsify.matmul(first, second)
    return out


declare("matmul", "(Tensor first, Tensor second) -> Tensor", torch.matmul, torch.matmul)


def cdist(rows: Tensor, codes: Tensor, *args: Any) -> Tensor:
    """``cdist`` of packed rows; opaque to inductor, which asks how many there are."""
    library: Any = torch.ops.aten if exporting() else torch.ops.sparsify
    out: Tensor = library.cdist(rows, codes, *args)
    return out


def _cdist_fake(rows: Tensor, codes: Tensor, *args: Any) -> Tensor:
    return rows.new_empty((*rows.shape[:-1], codes.shape[-2]))


_CDIST = "(Tensor x1, Tensor x2, float p=2, int? compute_mode=None) -> Tensor"
declare("cdist", _CDIST, torch.ops.aten.cdist.default, _cdist_fake)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    """``scaled_dot_product_attention`` of packed queries [..., S, d]; S is never 0."""
    if query.is_cuda and not exporting():
        out: Tensor = torch.ops.sparsify.attention(query, key, value, attn_mask, *args, **kwargs)
        return out
    torch._check(query.size(-2) > 0)
    if attn_mask is not None and attn_mask.size(-2) == 1:  # inductor asks whether S is 1 too
        attn_mask = attn_mask.expand(*attn_mask.shape[:-2], query.size(-2), key.size(-2))
    attend = torch.nn.functional.scaled_dot_product_attention
    return attend(query, key, value, attn_mask, *args, **kwargs)


def _attention(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """The library's, stored sites before heads, as most of its kernels do."""
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, *args, **kwargs)
    return out.transpose(1, -2).contiguous().transpose(1, -2)


def _attention_fake(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    shape = [*query.shape[:-1], value.shape[-1]]
    shape[1], shape[-2] = shape[-2], shape[1]
    return query.new_empty(shape).transpose(1, -2)


# Opaque on CUDA: which kernel the library takes in half precision depends on whether S is 1.
_ATTENTION = (
    "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, "
    "bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor"
)
declare("attention", _ATTENTION, _attention, _attention_fake)
