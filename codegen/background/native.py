"""Compiled code, loaded into this process."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from threading import Semaphore
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .job import Job
from .operand import Operand

_RUNS = 4
"""At a time. More would wait in the package with Python's lock, which those that run need."""


class Native:
    """A package, loaded. It takes what it was compiled for alone, which :meth:`takes` tells."""

    def __init__(self, path: Path, job: Job) -> None:
        """Raises ``RuntimeError`` for what is no package."""
        count = len(job.read)
        self._path, self._read = path, job.read
        self._names, self._weights = job.weights, list[Tensor]()
        self._inputs, self._operands = job.operands[:count], job.operands[count:]
        self._run = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, _RUNS, -1)
        self._free = Semaphore(_RUNS)

    @property
    def source(self) -> str:
        with zipfile.ZipFile(self._path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".cpp")]
            return "\n\n".join(archive.read(name).decode() for name in names)

    def takes(self, inputs: Sequence[Any]) -> bool:
        return _fit(self._inputs, [inputs[i] for i in self._read])

    def __call__(self, inputs: Sequence[Any]) -> Any:
        read = (inputs[i] for i in self._read)
        with self._free:
            return tuple(self._run.boxed_run([*read, *self._weights]))

    def bind(self, module: GraphModule) -> bool:
        """Takes the weights that ``module`` has now, if it was compiled for such."""
        weights = [attrgetter(name)(module) for name in self._names]
        fits = _fit(self._operands, weights)
        if fits:
            self._weights = weights
        return fits


def _fit(operands: Sequence[Operand], values: Sequence[Any]) -> bool:
    return all(operand.takes(value) for operand, value in zip(operands, values, strict=True))
