"""What the launches of kernels ask of the device, of the user and of tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

SHARED_BYTES = 163 * 1024
"""Of one program on sm_80, the smallest of the devices that the kernels are meant for."""

_H100_PROCESSORS = 132  # where there is no GPU to ask: under the interpreter


@lru_cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors: how many programs run at a time."""
    if device.type != "cuda":
        return _H100_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def precision_of(dtype: torch.dtype, library: Any) -> str:
    """Of products: tf32 for float32 where the user allows it to ``library``, say
    ``torch.backends.cudnn.conv``. (``allow_tf32`` raises once someone has set this.)"""
    return "tf32" if dtype == torch.float32 and library.fp32_precision == "tf32" else "ieee"


def in_rows(x: Tensor) -> Tensor:
    """[..., d] with each row in one piece."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()
