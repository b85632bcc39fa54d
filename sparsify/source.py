"""The code that runs, to be read."""

from __future__ import annotations

from pathlib import Path

from . import codegen
from .codegen.emit import readable
from .passes.graphs import Graphs

_KERNELS = ("gather_conv", "overlay_attention", "group_statistics")


def whole(compiled: str) -> str:
    """The compiled update, and behind it the custom kernels that it calls."""
    parts = [f"# {name}\n{text}" for name, text in own_kernels(compiled).items()]
    return "\n\n".join([compiled, *parts])


def as_files(compiled: str, graphs: Graphs) -> dict[str, str]:
    """By name: the graphs as Python, the compiled update, the custom kernels that it calls."""
    files = {f"{name}.py": readable(part.module) for name, part in graphs.parts.items()}
    return {**files, "update_compiled.py": compiled, **own_kernels(compiled)}


def own_kernels(compiled: str) -> dict[str, str]:
    """By file name, the Triton sources of the custom operators that ``compiled`` calls."""
    folder = Path(codegen.__file__).parent
    called = [name for name in _KERNELS if f"sparsify.{name}." in compiled]
    return {f"kernel_{name}.py": (folder / name / "triton.py").read_text() for name in called}
