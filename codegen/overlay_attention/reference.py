"""``sparsify::overlay_attention`` in plain torch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference(
    query: Tensor,
    base_key: Tensor,
    base_value: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    scale: float,
) -> Tensor:
    """Softmax does not care about the order of keys."""
    keys, values = torch.cat([base_key, key], 2), torch.cat([base_value, value], 2)
    mask = bias.to(query.dtype).expand(1, 1, query.shape[2], -1)
    out = F.scaled_dot_product_attention(query, keys, values, mask, scale=scale)
    return out.transpose(1, 2).contiguous().transpose(1, 2)
