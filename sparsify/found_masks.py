"""Masks that are found: where runs of two prompts differ.

The recipe is FISEdit's (Yu et al., AAAI 2024): differences of latents over some steps, each scaled
to 0..1, are added up, and Otsu's threshold and an opening tell the edit from the rest. Other maps
than theirs go the same way: attention to words, and distances to a reference. For these RegionE
has a fixed threshold for each of three models; Otsu's needs none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .codegen.tables import dilate

_LEVELS = 256


def difference_map(differences: Sequence[Tensor]) -> Tensor:
    """float [N, H, W] in 0..1: the sum over steps of absolute differences [N, C, H, W], those of
    each step and item summed over channels and scaled to 0..1."""
    return scaled(torch.stack([scaled(own.abs().float().sum(1)) for own in differences]).sum(0))


def distance_map(values: Tensor, reference: Tensor) -> Tensor:
    """float [N, H, W]: 1 less the cosine of what stands at a site of the one and of the other, both
    [N, C, H, W]."""
    return 1 - F.cosine_similarity(values.float(), reference.float(), dim=1)


def found_mask(difference: Tensor, margin: int = 0) -> Tensor:
    """bool [N, H, W]: what stands out of a map float [N, H, W] in 0..1, without specks, and with a
    ``margin`` of so many sites."""
    return dilate(opened(above_otsu(difference)), margin)


def above_otsu(values: Tensor) -> Tensor:
    """bool [N, H, W], of float [N, H, W] in 0..1: above the threshold that leaves the least
    variance on its two sides (Otsu, 1979), in 256 levels; nowhere where all values are alike."""
    levels = (values * (_LEVELS - 1)).round().long()
    return torch.stack([own > _otsu(own) for own in levels])


def _otsu(levels: Tensor) -> Tensor:
    counts = torch.bincount(levels.flatten(), minlength=_LEVELS).double()
    below, each = counts.cumsum(0), torch.arange(_LEVELS, device=levels.device)
    sums = (counts * each).cumsum(0)
    above = below[-1] - below
    spread = (sums * below[-1] - sums[-1] * below).square() / (below * above)
    spread = torch.where(below * above > 0, spread, -1.0)
    return torch.where(spread.max() < 0, levels.max(), spread.argmax())


def opened(mask: Tensor) -> Tensor:
    """bool [N, H, W]: the union of all squares of 2x2 sites that lie in the mask; what is beyond
    the border counts as marked."""
    squares = F.avg_pool2d(F.pad(mask.float()[:, None], (1, 1, 1, 1), value=1.0), 2, 1) == 1
    return F.max_pool2d(squares.float(), 2, 1)[:, 0] > 0


def scaled(values: Tensor) -> Tensor:
    """Each item of float [N, H, W] to 0..1; all 0 where it is one value."""
    low, high = values.amin((-2, -1), True), values.amax((-2, -1), True)
    return (values - low) / (high - low).clamp(min=torch.finfo(values.dtype).tiny)
