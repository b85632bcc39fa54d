"""What the operators that a model calls depend on besides its inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.amp import is_autocast_available


@dataclass(frozen=True)
class Ambient:
    """Torch's settings of this thread: a graph that was captured under some is not another's."""

    autocast: tuple[tuple[str, torch.dtype], ...]
    """The kinds of devices that cast by themselves, and to what."""
    dtype: torch.dtype
    device: torch.device
    deterministic: bool

    @staticmethod
    def now(leaves: Iterable[Any]) -> Ambient:
        """Those that concern these inputs."""
        kinds = sorted({leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)})
        on = [k for k in kinds if is_autocast_available(k) and torch.is_autocast_enabled(k)]
        return Ambient(
            tuple((kind, torch.get_autocast_dtype(kind)) for kind in on),
            torch.get_default_dtype(),
            torch.get_default_device(),
            torch.are_deterministic_algorithms_enabled(),
        )
