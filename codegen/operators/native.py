"""Kernels in C++, for CPUs: each is a ``.cpp`` file in its operator's folder.

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
def library(source: Path, defined: str = "") -> ctypes.CDLL | None:
    """The compiled ``source``, a .cpp file, with one macro ``defined`` if it is given; None, with a
    warning, where there is no compiler."""
    from torch._inductor.codecache import CppCodeCache

    first = f"#define {defined}\n" if defined else ""
    try:
        code = first + source.read_text(encoding="utf-8")
        return CppCodeCache.load(code)  # type: ignore[no-any-return]
    except (SubprocessError, RuntimeError, OSError) as error:
        reason = str(error).strip().split("\n")[0]
        warnings.warn(
            f"the CPU kernel {source.stem} cannot be compiled, what it does is slower: {reason}",
            stacklevel=2,
        )
        return None
