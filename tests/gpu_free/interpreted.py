"""Kernels run on CPU tensors, in Triton's interpreter, with every access checked.

``TRITON_INTERPRET`` must be set before the kernels are imported, and then holds for all of them:
tests marked :data:`interpreted` are skipped in an ordinary run, in which one test runs the file
again in a process of its own::

    @interpreted
    def test_kernel() -> None:
        with guarded_accesses():
            ...

    @compiled
    def test_interpreted() -> None:
        run_interpreted(__file__)

The interpreter is silently wrong for bfloat16.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
_SECONDS = 600

interpreted = pytest.mark.skipif(not _INTERPRETED, reason="runs in a process of its own")
compiled = pytest.mark.skipif(_INTERPRETED, reason="is not for the interpreter")


def run_interpreted(file: str) -> None:
    """Runs the interpreted tests of ``file`` in a process with TRITON_INTERPRET=1."""
    root = Path(__file__).parents[2]
    # What pytest and its workers leave in the environment is not for another pytest.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    done = subprocess.run(
        command,
        env={**kept, "TRITON_INTERPRET": "1"},
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stdout


class OutOfRange(Exception):
    """A kernel reads or writes outside of its arguments."""


class _Memory:
    """The memory of one launch's tensors, as disjoint ranges of addresses."""

    def __init__(self) -> None:
        self.starts = np.empty(0, np.uint64)
        self.ends = np.empty(0, np.uint64)

    def allow(self, tensors: list[torch.Tensor]) -> None:
        merged: list[list[int]] = []
        for start, end in sorted(_extent(x) for x in tensors if x.numel()):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(end, merged[-1][1])
            else:
                merged.append([start, end])
        self.starts, self.ends = np.array(merged, np.uint64).reshape(-1, 2).T

    def check(self, pointers: Any, mask: Any) -> None:
        """``pointers`` and ``mask`` are the interpreter's handles; no mask: all are used."""
        addresses = pointers.data if mask is None else pointers.data[mask.data]
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        index = np.searchsorted(self.starts, addresses, side="right") - 1
        inside = index >= 0
        inside[inside] = addresses[inside] + np.uint64(size) <= self.ends[index[inside]]
        if not inside.all():
            raise OutOfRange(f"{(~inside).sum()} of {addresses.size} accesses")


def _extent(x: torch.Tensor) -> tuple[int, int]:
    """Addresses of the first byte of a view, and of the first one behind it."""
    last = sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


@contextmanager
def guarded_accesses() -> Iterator[None]:
    """Kernels that read or write outside of the tensors they were given raise OutOfRange.

    The interpreter reports it as an InterpreterError. Elements that a mask leaves out may point
    anywhere. An access to another argument of the same kernel is not noticed.
    """
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    memory = _Memory()
    hosted = GridExecutor._init_args_hst

    def launched(self: Any, args: Any, kwargs: Any) -> Any:
        on_host = hosted(self, args, kwargs)
        values = [*on_host[0], *on_host[1].values()]
        memory.allow([value for value in values if isinstance(value, torch.Tensor)])
        return on_host

    # The places of pointers and mask among the arguments.
    accesses = {
        "create_masked_load": (0, 1),
        "create_masked_store": (0, 2),
        "create_atomic_rmw": (1, 3),
        "create_atomic_cas": (0, None),
    }

    def checked(name: str) -> Callable[..., Any]:
        access, (pointers, mask) = getattr(InterpreterBuilder, name), accesses[name]

        def check(self: Any, *args: Any, **kwargs: Any) -> Any:
            memory.check(args[pointers], None if mask is None else args[mask])
            return access(self, *args, **kwargs)

        return check

    with ExitStack() as stack:
        stack.enter_context(patch.object(GridExecutor, "_init_args_hst", launched))
        for name in accesses:
            stack.enter_context(patch.object(InterpreterBuilder, name, checked(name)))
        yield
