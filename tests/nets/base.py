"""What the networks share: a width, a convolution, and frames around a part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

C = 8
"""Channels of every picture."""


Operator = Callable[[Tensor], Tensor]


def conv(c_in: int = C, c_out: int = C, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)


class Between(nn.Module):
    """An operator without weights between two convolutions."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator
        with torch.no_grad():
            channels = operator(torch.zeros(1, C, 8, 12)).shape[1]
        self.enter, self.leave = conv(), conv(channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.leave(self.operator(self.enter(x)))
        return result


class OnLastAxis(nn.Module):
    """Channels last around a part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.enter, self.part = conv(), part

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(self.enter(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Together(nn.Module):
    """Networks of one picture side by side: captured at once, which saves most of the time."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.names, self.parts = list(parts), nn.ModuleList(parts.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: part(x) for name, part in zip(self.names, self.parts, strict=True)}
