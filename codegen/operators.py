"""How operators of ours are declared to torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the Triton kernels compute in; anything else is the references'."""


def exporting() -> bool:
    """Is a graph traced for another process, which has stock operators only?

    Under dynamo, which takes no part in exports, torch 2.11 always says so.
    """
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def declare(
    name: str,
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    on_cuda: Callable[..., Any] | None = None,
    tags: Sequence[torch.Tag] = (),
) -> None:
    """Makes ``torch.ops.sparsify.name``: ``reference`` everywhere but on CUDA, if ``on_cuda`` is
    given; ``fake`` gives the result's shape."""
    torch.library.define(f"sparsify::{name}", schema, tags=tags)
    torch.library.impl(f"sparsify::{name}", "CompositeExplicitAutograd", reference)
    if on_cuda is not None:
        torch.library.impl(f"sparsify::{name}", "CUDA", on_cuda)
    torch.library.register_fake(f"sparsify::{name}", fake)
