"""What timings depend on besides the code: the machine, its settings, and how fast it is."""

from __future__ import annotations

import hashlib
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sparsify.timing import timed

SETTINGS = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "OMP_WAIT_POLICY",
)
CODE = ("benchmarks", "codegen", "examples", "passes", "sparsify")
STREAM_BYTES, PRODUCT = 1 << 29, 2048


def commit() -> str:
    """Of the code; with a digest of what is not committed of it, if anything."""
    head = _git("rev-parse", "--short", "HEAD").strip()
    changes = _git("diff", "HEAD", "--", *CODE)
    return f"{head}+{hashlib.sha1(changes.encode()).hexdigest()[:8]}" if changes else head


def _git(*command: str) -> str:
    folder = Path(__file__).parents[1]
    done = subprocess.run(
        ["git", *command], capture_output=True, text=True, check=False, cwd=folder
    )
    return done.stdout


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    cpu = Path("/proc/cpuinfo")
    names = [x for x in cpu.read_text().splitlines() if "model name" in x] if cpu.exists() else []
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit(),
        "settings": {name: os.environ.get(name, "default") for name in SETTINGS},
    }


def rates() -> dict[str, float]:
    """Of this machine: bytes a second that are read and copied, MACs a second of a product."""
    source = torch.ones(STREAM_BYTES // 4)
    target = torch.empty_like(source)
    square = torch.randn(PRODUCT, PRODUCT)
    return {
        "read_bytes_s": source.nbytes / _median(source.sum),
        "copy_bytes_s": 2 * source.nbytes / _median(lambda: target.copy_(source)),
        "product_macs_s": PRODUCT**3 / _median(lambda: square @ square),
    }


def _median(run: Callable[[], Any], rounds: int = 5) -> float:
    """Seconds, after one run to warm up."""
    return statistics.median([timed(run)[0] for _ in range(rounds + 1)][1:]) / 1e3
