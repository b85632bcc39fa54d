"""The process that compiles: ``python -m sparsify.codegen.background.worker JOB PACKAGE``.

It is nice to all others, takes one core, and ends when its parent does, which holds its standard
input open. It prints what it is about to do, a line each.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from threading import Thread
from typing import Any


def main(arguments: Sequence[str]) -> None:
    job, package = map(Path, arguments)
    Thread(target=_end_with_parent, daemon=True).start()
    if hasattr(os, "nice"):
        os.nice(19)
    compile_job(job.read_text(), package, lambda stage: print(stage, flush=True))


def _end_with_parent() -> None:
    while os.read(0, 1):  # sys.stdin would be locked when this process ends
        pass
    os._exit(1)


def compile_job(text: str, package: Path, tell: Callable[[str], None]) -> None:
    """Compiles a :class:`.job.Job` into a package."""
    import torch
    from torch._inductor.package.package import package_aoti

    from .. import __name__ as codegen
    from .. import __path__ as folders
    from .job import Job

    for module in iter_modules(folders):  # each may declare operators
        import_module(f"{codegen}.{module.name}")
    torch.set_num_threads(1)
    tell("tracing")
    traced, examples = traced_job(Job.from_text(text))
    tell("compiling")
    options = {"aot_inductor.package": True, "compile_threads": 1}
    with torch.no_grad():
        files: Any = torch._inductor.aot_compile(traced, tuple(examples), options=options)
    package_aoti(str(package), files)


def traced_job(job: Any) -> tuple[Any, list[Any]]:
    """The graph of stock and custom operators, and operands that have no values."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx import Interpreter
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    from ..ambient import as_captured

    sizes = ShapeEnv()

    def unknown() -> Any:
        size = sizes.create_unbacked_symint()
        torch._check(size >= 1)
        if job.most is not None:
            torch._check(size <= job.most)
        return size

    with FakeTensorMode(shape_env=sizes) as mode, sizes.ignore_fresh_unbacked_symbols():
        examples = [operand.empty(unknown) for operand in job.operands]
    with as_captured(), mode:
        traced = make_fx(Interpreter(job.module()).run)(*examples)
    return traced, examples


if __name__ == "__main__":
    main(sys.argv[1:])
