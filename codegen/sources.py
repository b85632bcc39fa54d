"""What compiled code depends on beside its graph."""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pathlib import Path

import torch


@cache
def of_operators() -> str:
    """Changes with whatever a custom operator is made of."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*")):
        if path.suffix in (".py", ".cpp"):
            digest.update(path.read_bytes())
    return f"sparsify-{digest.hexdigest()[:16]}"


@cache
def of_machine() -> str:
    """Changes with torch, and with the instructions of the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = [platform.processor()]
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), lines[0])
    parts = torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability(), flags
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
