"""Emitted sources as files that a reviewer reads: what changes in them is seen in a diff."""

from __future__ import annotations

import os
import re
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "golden"
_KERNEL = re.compile(
    r"(@triton_heuristics\.\w+)\(.*?(@triton\.jit\n.*?)\n''', device_str", re.DOTALL
)
_CALL = re.compile(r"    def call\(self, args\):\n.*?\n        return [^\n]*\n", re.DOTALL)
_NOISE = re.compile(
    r" *(#|del |if not \(u|raise RuntimeError|buf\d+ = None|args\.clear|assert_|raw_stream"
    r"|torch\.cuda\.set_device|arg\d+_1 = copy_if_misaligned)"
)


def condensed(source: str) -> str:
    """The kernels and the calls of an emitted source, without settings, checks and comments."""
    kernels = [f"{heuristic}\n{body}\n" for heuristic, body in _KERNEL.findall(source)]
    parts = [*kernels, *_CALL.findall(source)]
    lines = [line for part in parts for line in (*part.splitlines(), "", "")]
    return "\n".join(line for line in lines if not _NOISE.match(line)).rstrip() + "\n"


def check(name: str, source: str) -> None:
    """``source`` is the one in the golden file; with UPDATE_GOLDEN=1 it becomes that."""
    path, found = FOLDER / f"{name}.txt", condensed(source)
    if os.environ.get("UPDATE_GOLDEN") == "1":
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text(), f"{path} differs: look at it, then run with UPDATE_GOLDEN=1"
