"""Runs an emitted source on the CPU, its Triton kernels under the interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.fx import GraphModule

from .emission import Emission, unflatten

ROOT = Path(__file__).resolve().parents[2]


def execute(
    emission: Emission,
    module: GraphModule,
    *cases: Sequence[Any],
    imports: Sequence[str] = ("tests.gpu_free.our_kernels",),
) -> list[Any]:
    """What the emitted code for ``module`` computes for the inputs of each case.

    Runs in a process of its own, because the interpreter is chosen when Triton is imported.
    ``imports`` are modules that register the operators which the source calls.
    """
    arguments = [emission.bind(module, inputs) for inputs in cases]
    with TemporaryDirectory() as folder:
        source, given, results = (Path(folder, name) for name in ("source.py", "given", "results"))
        source.write_text(emission.source)
        torch.save(arguments, given)
        command = [sys.executable, "-m", "tests.gpu_free.stand_in", source, given, results]
        environment = {**os.environ, "TRITON_INTERPRET": "1"}
        process = subprocess.run(
            [*command, *imports], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        if process.returncode:
            raise RuntimeError(f"the emitted code failed:\n{process.stderr}")
        outputs = torch.load(results, weights_only=True)
    return [unflatten(module, inputs, flat) for inputs, flat in zip(cases, outputs, strict=True)]
