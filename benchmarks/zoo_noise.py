"""Noise for weights that an untrained network holds at zero."""

from __future__ import annotations

import torch
from torch import nn


def randomised(model: nn.Module) -> nn.Module:
    """The model in eval mode, with small noise where a parameter is all zero: behind a zero gate
    or projection any error would go unseen."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and not parameter.is_meta and parameter.abs().max() == 0:
                parameter.copy_(0.02 * torch.randn_like(parameter))
    return model.eval()
