"""From a graph module to something that runs fast."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.decorators import mark_unbacked
from torch.fx import GraphModule


def emit(module: GraphModule, backend: str) -> Callable[..., Any]:
    """``module`` as it is ("eager") or compiled at its first call ("inductor")."""
    if backend == "eager":
        return module
    compiled: Callable[..., Any] = torch.compile(module, fullgraph=True)
    return compiled


def mark_sizes(tables: Sequence[Tensor], dynamic: Sequence[bool]) -> None:
    """Declares the number of active sites unknown, so that one compilation serves every mask."""
    for table, is_dynamic in zip(tables, dynamic, strict=True):
        if is_dynamic:
            mark_unbacked(table, 0)
