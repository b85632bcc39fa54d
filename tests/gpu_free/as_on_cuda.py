"""The graphs that CUDA gets, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch


@contextmanager
def plain_weights() -> Iterator[None]:
    """Inside, no weight is arranged for the CPU's kernel."""
    with patch("sparsify.codegen.products.in_panels", lambda x: False):
        yield


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside, models are rewritten with padded tables and fused operators too."""
    with plain_weights(), patch("sparsify.program.has_kernels", lambda device: True):
        yield
