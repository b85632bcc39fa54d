"""The graphs that CUDA gets, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest.mock import patch

from sparsify.codegen.gather_matmul.formats import FORMATS, PLAIN


@contextmanager
def plain_weights() -> Iterator[None]:
    """Inside, there is no kernel for weights in another format."""
    others = {
        name: replace(format, runs=lambda device, dtype: False)
        for name, format in FORMATS.items()
        if name != PLAIN
    }
    with patch.dict(FORMATS, others):
        yield


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside, models are rewritten with padded tables and fused operators too."""
    with plain_weights(), patch("sparsify.program.has_kernels", lambda device: True):
        yield
