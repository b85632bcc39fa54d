"""Programs as AOTInductor packages: native code, for Python and C++."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import ExportError
from .programs import Pure, quiet, reason
from .pt2 import Run


def write(exported: ExportedProgram, function: Pure, path: Path) -> None:
    """Compiles a package; its metadata name the arguments and results, for C++ to find.

    Raises :class:`ExportError`.
    """
    names = {kind: "\n".join(getattr(function, kind)) for kind in ("inputs", "weights", "outputs")}
    configs: dict[str, Any] = {"aot_inductor.metadata": names}
    try:
        with quiet():
            torch._inductor.aoti_compile_and_package(
                exported, package_path=str(path), inductor_configs=configs
            )
    except Exception as error:
        raise ExportError(
            f"AOTInductor cannot compile the {function.name} graph: {reason(error)}. "
            'format="pt2" needs no compiler'
        ) from error


def read(path: Path) -> Run:
    """Loads the code of a package into this process."""
    package = torch._inductor.aoti_load_package(str(path))
    return lambda tensors: package(tuple(tensors))
