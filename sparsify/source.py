"""The code that runs, to be read."""

from __future__ import annotations

from pathlib import Path

from . import codegen
from .codegen.emit import readable
from .passes.partition import ThreeGraphs

_GRAPHS = ("record", "plan", "conditions", "update", "commit")
_KERNELS = ("gather_conv", "overlay_attention", "group_statistics")


def whole(compiled: str) -> str:
    """The compiled update, and behind it the kernels of ours that it calls."""
    parts = [f"# {name}\n{text}" for name, text in own_kernels(compiled).items()]
    return "\n\n".join([compiled, *parts])


def as_files(compiled: str, graphs: ThreeGraphs) -> dict[str, str]:
    """By name: the graphs as Python, the compiled update, the kernels of ours that it calls."""
    files = {f"{name}.py": readable(getattr(graphs, name)) for name in _GRAPHS}
    return {**files, "update_compiled.py": compiled, **own_kernels(compiled)}


def own_kernels(compiled: str) -> dict[str, str]:
    """By file name, the Triton sources of the operators of ours that ``compiled`` calls."""
    folder = Path(codegen.__file__).parent
    called = [name for name in _KERNELS if f"sparsify.{name}." in compiled]
    return {f"kernel_{name}.py": (folder / name / "triton.py").read_text() for name in called}
