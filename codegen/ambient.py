"""What surrounds a call and is no part of a graph: autocast, gradients, an export."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def as_captured(device: str = "cpu") -> Iterator[None]:
    """Inside, a graph casts as it was captured, keeps nothing for gradients, and makes ordinary
    tensors, also in inference mode.

    It may compute on the host and on devices of one more type.
    """
    kinds = {"cpu", device} if torch.amp.is_autocast_available(device) else {"cpu"}
    on = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
    with torch.inference_mode(False), torch.no_grad(), ExitStack() as stack:
        for kind in on:
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield
