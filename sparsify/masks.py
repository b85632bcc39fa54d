"""Masks that users hand in: what is taken as one, one from two pictures, and one to measure with.

The rule: **a site is edited where its value is above 0.** Masks are tensors, NumPy arrays, or PIL
images of one channel, of booleans or numbers (0/1, 0/255, feathered 0..1), on any device, as

- [H, W]: one for all items of a batch;
- [N, H, W] or [N, 1, H, W]: one for each; N of them serve a batch of 2N, whose halves share
  them (guidance).

A mask a whole number of times larger than the input's grid, as a picture is than its latents,
marks every site that holds a marked pixel. All else is refused with the conversion to use:
negative numbers and NaN, several channels, channels last, other sizes and numbers of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from PIL.Image import Image
from torch import Tensor

from .codegen.errors import MaskError

Picture: TypeAlias = Tensor | npt.NDArray[Any] | Image
MaskLike: TypeAlias = Picture
"""What :func:`as_mask` takes."""

_T = TypeVar("_T")

HINT = "bool [H, W] or [N, H, W], as `difference_mask(before, after)` makes it"


def by_step(masks: _T | Sequence[_T] | None) -> list[_T]:
    """One for each step, one for all, or none. Raises :class:`MaskError` for an empty list."""
    if masks is None:
        return []
    if not isinstance(masks, list | tuple):
        return [cast(_T, masks)]
    if not masks:
        raise MaskError("the list of masks is empty: give one for each step")
    return list(masks)


def difference_mask(before: Picture, after: Picture, threshold: float = 1 / 255) -> Tensor:
    """bool [H, W]: pixels of which some channel of some item differs by more than ``threshold``.

    ``before`` and ``after`` are [..., H, W] of one shape, tensors or NumPy arrays, or PIL images.
    ``threshold`` is in the values' own units: by default it leaves out one level of
    pictures in 0..1, and nothing of integers and booleans, whose smallest step is 1. A pixel
    that is not a number counts as different. Raises :class:`MaskError` for other shapes, channels
    that come last, and a pair of floats and integers.
    """
    old, new = _picture("before", before), _picture("after", after)
    if old.shape != new.shape or old.dim() < 2:
        raise MaskError(
            f"before {tuple(old.shape)} and after {tuple(new.shape)}: "
            "give two pictures [..., H, W] of one shape"
        )
    if _is_whole(old) != _is_whole(new):
        raise MaskError(
            f"before is {old.dtype} and after {new.dtype}: bring both to one range and dtype, "
            "e.g. `before.float() / 255` for 0..255 against 0..1"
        )
    same = _distance(old, new.to(old.device), threshold)
    return ~same.reshape(-1, *same.shape[-2:]).all(0)


def _distance(old: Tensor, new: Tensor, threshold: float) -> Tensor:
    """Are the values no further apart than ``threshold``? Nothing wraps or is rounded away."""
    if _is_whole(old):
        old, new = old.long(), new.long()
        apart = torch.maximum(old, new) - torch.minimum(old, new)
        return (apart <= threshold) & (apart >= 0)  # below 0: too far apart to be counted
    return (_wide(old) - _wide(new)).abs() <= threshold


def _picture(name: str, picture: Picture) -> Tensor:
    """[..., H, W]. Raises :class:`MaskError`."""
    if isinstance(picture, Image):
        flat = picture.convert("RGBA") if picture.mode == "P" else picture
        values = torch.from_numpy(np.array(flat))
        return values.movedim(-1, 0) if values.dim() == 3 else values
    values = _tensor(name, picture)
    shape = list(values.shape)
    if len(shape) > 2 and shape[-1] <= 4 < min(shape[-3:-1]):
        conversion = "np.moveaxis({}, -1, -3)" if isinstance(picture, np.ndarray) else None
        conversion = (conversion or "{}.movedim(-1, -3)").format(name)
        raise MaskError(f"{name} is {shape}, channels last: give [..., C, H, W], `{conversion}`")
    return values


def centred_square(grid: tuple[int, int], share: float) -> Tensor:
    """bool [H, W]: a centred rectangle, as wide to high as the grid, of this share of its sites.

    At least one site is marked.
    """
    mask = torch.zeros(grid, dtype=torch.bool, device="cpu")
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


def as_mask(mask: MaskLike | None) -> Tensor:
    """A copy as bool [H, W] or [N, H, W], on the host, by this file's rule.

    Raises :class:`MaskError`.
    """
    if mask is None:
        raise MaskError(f"there is no mask: give `mask`, {HINT}, or a plan")
    if isinstance(mask, Image):
        _require_one_channel(mask)
        values = torch.from_numpy(np.array(mask))
    else:
        values = _tensor("the mask", mask)
    return _of_one_channel(_is_marked(values))


def fitted(mask: Tensor, grid: tuple[int, int], batch: int) -> Tensor:
    """What :func:`as_mask` gave, for a batch of inputs on ``grid``: bool [H, W], or [N, H, W].

    Raises :class:`MaskError`.
    """
    *items, height, width = mask.shape
    if (height, width) != grid:
        times = height // grid[0]
        if times < 1 or (height, width) != (times * grid[0], times * grid[1]):
            raise _of_another_size(mask, grid)
        mask = mask.unflatten(-1, (grid[1], times)).any(-1)
        mask = mask.unflatten(-2, (grid[0], times)).any(-2)
    if items and 2 * items[0] == batch:
        return mask.repeat(2, 1, 1)
    if items and items[0] not in (1, batch):
        raise MaskError(
            f"the mask has {items[0]} items, the inputs {batch}: give [H, W] for all of them, one "
            "for each, or one for each of a half; e.g. `mask.repeat(3, 1, 1)` for three thirds"
        )
    return mask


def _tensor(name: str, values: Any) -> Tensor:
    """On the device where it lies. Raises :class:`MaskError`."""
    if isinstance(values, np.ndarray):
        try:
            return torch.from_numpy(np.array(values, values.dtype.newbyteorder("="), order="C"))
        except TypeError:
            raise MaskError(f"{name} is an array of {values.dtype}: give numbers") from None
    if not isinstance(values, Tensor):
        raise MaskError(
            f"{name} is a {type(values).__name__}: give a tensor [H, W], a NumPy array or a PIL "
            "image, e.g. `torch.tensor(...)` of lists"
        )
    if values.device.type == "meta":
        raise MaskError(f"{name} is on meta, where tensors have no values: make it on the CPU")
    return values.detach()


def _is_marked(values: Tensor) -> Tensor:
    """bool, in memory of its own."""
    if values.dtype == torch.bool:
        return values.to("cpu", copy=True).contiguous()
    if values.is_complex():
        raise MaskError(f"the mask has dtype {values.dtype}: give `mask.abs() > 0`")
    numbers = _wide(values.cpu())
    if numbers.isnan().any():
        raise MaskError("the mask holds NaN: give `mask.nan_to_num() > 0`, or say what is edited")
    if (numbers < 0).any():
        raise MaskError(
            "the mask holds negative numbers, and nothing says whether these are edited: give "
            "`mask > 0`, or `mask != 0`"
        )
    return (numbers > 0).contiguous()


def _of_one_channel(mask: Tensor) -> Tensor:
    shape = list(mask.shape)
    if len(shape) == 4 and shape[1] == 1:
        return mask[:, 0]
    if len(shape) == 4 and shape[-1] <= 4:
        raise MaskError(f"the mask is {shape}, channels last: give [N, H, W], `mask.any(-1)`")
    if len(shape) == 4:
        raise MaskError(
            f"the mask is {shape}, {shape[1]} channels: give one of them, `mask[:, 0]`, or what "
            "any of them marks, `mask.any(1)`"
        )
    if len(shape) not in (2, 3):
        raise MaskError(f"the mask has rank {len(shape)}: give [H, W], [N, H, W] or [N, 1, H, W]")
    return mask


def _require_one_channel(mask: Image) -> None:
    if mask.mode == "P":
        raise MaskError("the mask is a picture with a palette: give `mask.convert('L')`")
    if (bands := mask.getbands()) != bands[:1]:
        alpha = "`mask.getchannel('A')`, or " if "A" in bands else ""
        raise MaskError(
            f"the mask is a picture of {len(bands)} channels ({mask.mode}), and nothing says which "
            f"marks the edit: give {alpha}`mask.convert('L')`"
        )


def _of_another_size(mask: Tensor, grid: tuple[int, int]) -> MaskError:
    shape = tuple(mask.shape)
    if len(shape) == 3 and shape[-1] <= 4:
        return MaskError(
            f"the mask is {shape}, channels last, and the edited input lives on the grid {grid}: "
            "give [H, W], `mask.any(-1)`"
        )
    return MaskError(
        f"the mask is {shape[-2:]} but the edited input lives on the grid {grid}, of which it is "
        "no multiple: resize the mask so that no edited pixel is lost, "
        f"`torch.nn.functional.adaptive_max_pool2d(mask.float()[None], {grid})[0]`"
    )


def _is_whole(values: Tensor) -> bool:
    """Booleans and integers."""
    return not (values.is_floating_point() or values.is_complex())


def _wide(values: Tensor) -> Tensor:
    """In a dtype that holds them all, and differences of them."""
    return values.float() if values.dtype.itemsize < 4 or _is_whole(values) else values
