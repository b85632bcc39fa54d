"""Kernels in C++, for CPUs: each is a ``.cpp`` file beside its module.

They are compiled at their first use, by the compiler that inductor takes, and kept in inductor's
cache.
"""

from __future__ import annotations

import ctypes
import warnings
from functools import cache
from pathlib import Path
from subprocess import SubprocessError


@cache
def library(name: str) -> ctypes.CDLL | None:
    """The compiled ``name.cpp``; None, with a warning, where there is no compiler."""
    from torch._inductor.codecache import CppCodeCache

    source = Path(__file__).with_name(f"{name}.cpp").read_text(encoding="utf-8")
    try:
        return CppCodeCache.load(source)  # type: ignore[no-any-return]
    except (SubprocessError, RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"the CPU kernel {name} cannot be compiled, what it does is slower: {reason}",
            stacklevel=2,
        )
        return None
