"""How custom operators are declared to torch; beside this, what their kernels share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch

KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the Triton kernels compute in; anything else is the references'."""


_EXPORTING = ContextVar("exporting", default=False)


def exporting() -> bool:
    """Does this thread trace a graph for another process, which has stock operators only?

    Torch's own flag holds for all threads. Dynamo, which cannot read this one, takes no part in
    exports.
    """
    return not torch.compiler.is_dynamo_compiling() and _EXPORTING.get()


@contextmanager
def export() -> Iterator[None]:
    """Inside, graphs are traced for another process."""
    token = _EXPORTING.set(True)
    try:
        yield
    finally:
        _EXPORTING.reset(token)


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
