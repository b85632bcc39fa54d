"""Edits of a given share of the sites: in one piece, and in many."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sparsify.masks import centred_square

STROKES = 12


def scattered_strokes(grid: tuple[int, int], share: float) -> Tensor:
    """bool [H, W]: the sites next to some straight strokes, as many as are in the square."""
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.meshgrid(*(torch.arange(float(side)) for side in grid), indexing="ij")
    distance = torch.full(grid, math.inf)
    for down, right, turn in torch.rand(STROKES, 3, generator=generator).tolist():
        dy, dx = math.sin(math.pi * turn), math.cos(math.pi * turn)
        y, x = rows - down * grid[0], columns - right * grid[1]
        half = min(grid) / 12
        along = (y * dy + x * dx).clamp(-half, half)
        distance = torch.minimum(distance, torch.hypot(y - along * dy, x - along * dx))
    sites = int(centred_square(grid, share).sum())
    nearest = distance.flatten().topk(sites, largest=False).indices
    return torch.zeros(grid, dtype=torch.bool).flatten().index_fill(0, nearest, True).view(grid)


MASKS: dict[str, Callable[[tuple[int, int], float], Tensor]] = {
    "square": centred_square,
    "strokes": scattered_strokes,
}
