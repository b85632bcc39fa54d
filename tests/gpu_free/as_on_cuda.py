"""The graphs that CUDA gets, on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from sparsify.codegen.gather_matmul import formats, semi_structured
from sparsify.codegen.gather_matmul.formats import FORMATS, PLAIN, Format


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
def sparse_weights() -> Iterator[None]:
    """Inside, formats of weights that keep N of M inputs run as on CUDA: "tiles" by its reference,
    "2:4" by what the caller has in the place of torch's operators, those of CPUs not at all."""

    def made(kind: Any, is_there: bool) -> Any:
        def format(*numbers: int) -> Format:
            return replace(kind(*numbers), runs=lambda device, dtype: is_there)

        return format

    pairs = replace(FORMATS["2:4"], runs=lambda device, dtype: dtype in semi_structured.DTYPES)
    with (
        patch.object(formats, "_tiles", made(formats._tiles, True)),
        patch.object(formats, "_listed", made(formats._listed, False)),
        patch.object(formats, "_fine", made(formats._fine, False)),
        patch.dict(FORMATS, {"2:4": pairs}),
    ):
        yield


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Inside, models are rewritten with padded tables and fused operators too."""
    with plain_weights(), patch("sparsify.program.has_kernels", lambda device: True):
        yield
