"""What kernels ask of the device."""

from __future__ import annotations

from functools import lru_cache

import torch

SHARED_BYTES = 163 * 1024
"""Of one program on sm_80, the smallest of the devices that the kernels are meant for."""

_H100_PROCESSORS = 132  # where there is no GPU to ask: under the interpreter


@lru_cache
def processors(device: torch.device) -> int:
    """Streaming multiprocessors: how many programs run at a time."""
    if device.type != "cuda":
        return _H100_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
