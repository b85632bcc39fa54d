"""Operators of CUDA that the compiler itself runs or chooses by, where torch was built without.

They belong to :mod:`.fake_cuda`; registering them cannot be undone, so that is for a child
process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten
_ALIGNMENT = 16
"""Bytes that the rows of a fused attention's operands are multiples of."""


def register() -> None:
    """Declares the operators."""
    torch.library.impl("aten::empty.memory_format", "CUDA", _empty)
    torch.library.impl("aten::empty_strided", "CUDA", _empty_strided)
    torch.library.impl("aten::scaled_dot_product_attention", "AutogradCUDA", _attention)


def _empty(size: list[int], *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    """Constants are folded with real tensors."""
    return torch.empty(size, dtype=dtype, memory_format=memory_format or torch.contiguous_format)


def _empty_strided(size: list[int], stride: list[int], *, dtype: Any = None, **_: Any) -> Tensor:
    return torch.empty_strided(size, stride, dtype=dtype)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Chooses a kernel as on a GPU for float32: the memory-efficient one wherever it fits."""
    aligned = [x.shape[-1] * x.element_size() % _ALIGNMENT == 0 for x in (query, key, value)]
    dense = [x.stride(-1) == 1 for x in (query, key, value)]
    if enable_gqa or query.dim() != 4 or not all(aligned + dense):
        return aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    bias = None if attn_mask is None else _bias(attn_mask, query, key)
    return aten._scaled_dot_product_efficient_attention(
        query, key, value, bias, False, dropout_p, is_causal, scale=scale
    )[0]


def _bias(mask: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """A mask as what is added to the scores, its rows aligned in memory."""
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, float("-inf"))
    count = mask.shape[-1]
    padded = F.pad(mask, (0, -count % _ALIGNMENT))[..., :count]
    return padded.expand(*query.shape[:-1], key.shape[-2])
