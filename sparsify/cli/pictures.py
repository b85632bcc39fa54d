"""Pictures in files, as tensors of networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..codegen.errors import SignatureError, SparsifyError

_MODES = {1: "L", 3: "RGB"}


def is_picture(shape: tuple[int, ...]) -> bool:
    """One grey or RGB picture [1, C, H, W]."""
    return len(shape) == 4 and shape[0] == 1 and shape[1] in _MODES


def read(path: Path, shape: tuple[int, ...]) -> Tensor:
    """float32 [1, C, H, W] in [0, 1], grey or RGB as ``shape`` says, turned as a camera noted.

    Raises :class:`SignatureError` for another size, and for what is no picture of 8 bits.
    """
    _, channels, height, width = shape
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise SignatureError(f"{path} has more than 8 bits a channel: save it with 8")
            pixels = np.array(ImageOps.exif_transpose(image).convert(_MODES[channels]))
    except Image.DecompressionBombError:
        raise SignatureError(f"{path} has too many pixels: resize it") from None
    except (OSError, ValueError, SyntaxError, EOFError):  # as PIL tells of damage
        raise SignatureError(f"{path} is not a picture that can be read: save it as PNG") from None
    if pixels.shape[:2] != (height, width):
        raise SignatureError(
            f"{path} has {pixels.shape[1]}x{pixels.shape[0]} pixels but {width}x{height} were "
            "exported: resize it, or export the model for its size"
        )
    return torch.from_numpy(pixels).reshape(height, width, channels).permute(2, 0, 1)[None] / 255


def write(picture: Tensor, path: Path) -> None:
    """``picture`` [1, C, H, W], cut to [0, 1], with 8 bits a channel.

    Raises :class:`SparsifyError`.
    """
    pixels = (picture[0].float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()).save(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SparsifyError(f"{path} cannot be written ({reason}): name another file") from None
