"""The code that runs, to be read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .codegen import kernels
from .codegen.emit import readable

if TYPE_CHECKING:
    from .module import SparseModule

_GRAPHS = ("record", "plan", "static", "update", "commit")
_KERNELS = ("gather_conv", "overlay_attention")


def dump(sparse: SparseModule, folder: str | Path, *args: Any, **kwargs: Any) -> list[Path]:
    """Writes what calls like this one run, as files in ``folder``; returns their paths.

    ``record.py`` ... ``commit.py`` are the graphs as Python, ``update_compiled.py`` what the
    backend made of the update, beside the kernels of ours that it calls. Compiles the update if
    that has not run yet.
    """
    compiled = sparse.compiled_source(*args, **kwargs)
    graphs = sparse.graphs(*args, **kwargs)
    files = {f"{name}.py": readable(getattr(graphs, name)) for name in _GRAPHS}
    files |= {"update_compiled.py": compiled, **own_kernels(compiled)}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]


def whole(compiled: str) -> str:
    """Compiled code, and behind it the kernels of ours that it calls."""
    parts = [f"# {name}\n{text}" for name, text in own_kernels(compiled).items()]
    return "\n\n".join([compiled, *parts])


def own_kernels(compiled: str) -> dict[str, str]:
    """By file name, the Triton sources of the operators of ours that ``compiled`` calls."""
    folder = Path(kernels.__file__).parent
    called = [name for name in _KERNELS if f"sparsify.{name}." in compiled]
    return {f"kernel_{name}.py": (folder / f"{name}.py").read_text() for name in called}
