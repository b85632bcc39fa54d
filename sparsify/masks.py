"""Masks that users hand in: checks, one from two pictures, and one to measure with."""

from __future__ import annotations

import torch
from torch import Tensor

from .codegen.errors import MaskError


def difference_mask(before: Tensor, after: Tensor, threshold: float = 1 / 255) -> Tensor:
    """bool [H, W]: pixels of which some channel of some item differs by more than ``threshold``.

    ``before`` and ``after`` are [..., H, W] of one shape. A pixel that is not a number counts
    as different. Raises :class:`MaskError` if the shapes differ.
    """
    if before.shape != after.shape or before.dim() < 2:
        raise MaskError(
            f"before {tuple(before.shape)} and after {tuple(after.shape)}: "
            "give two pictures [..., H, W] of one shape"
        )
    same = (before - after).abs() <= threshold
    return ~same.reshape(-1, *same.shape[-2:]).all(0)


def centred_square(grid: tuple[int, int], share: float) -> Tensor:
    """bool [H, W]: a centred rectangle, as wide to high as the grid, of this share of its sites.

    At least one site is marked.
    """
    mask = torch.zeros(grid, dtype=torch.bool)
    height, width = (max(1, round(side * share**0.5)) for side in grid)
    top, left = (grid[0] - height) // 2, (grid[1] - width) // 2
    mask[top : top + height, left : left + width] = True
    return mask


def no_site_follows() -> MaskError:
    """For an empty mask, where the recorded outputs are not those of the new inputs."""
    return MaskError(
        "the mask is empty, other inputs changed, and an output does not lie on a "
        "grid: mark the sites that shall follow, or record again"
    )


def check_mask(mask: Tensor, grid: tuple[int, int], batch: int, device: torch.device) -> Tensor:
    """The mask as bool [H, W]; of [N, H, W] the union of its items. Raises :class:`MaskError`."""
    if not isinstance(mask, Tensor):
        raise MaskError(f"the mask is a {type(mask).__name__}: give a bool tensor [H, W]")
    if mask.dtype != torch.bool:
        raise MaskError(f"the mask has dtype {mask.dtype}: give torch.bool, e.g. `mask > 0`")
    if mask.dim() not in (2, 3):
        raise MaskError(f"the mask has rank {mask.dim()}: give [H, W] or [N, H, W]")
    if tuple(mask.shape[-2:]) != grid:
        raise MaskError(
            f"the mask is {tuple(mask.shape[-2:])} but the edited input lives on the grid {grid}: "
            "resize the mask to it (max-pool, so that no edited pixel is lost)"
        )
    if mask.device.type != "cpu" and mask.device != device:
        raise MaskError(
            f"the mask is on {mask.device}, the inputs on {device}: move it there, or to the CPU"
        )
    if mask.dim() == 2:
        return mask
    if mask.shape[0] not in (1, batch):
        raise MaskError(f"the mask has {mask.shape[0]} items, the inputs {batch}")
    return mask.any(0)
