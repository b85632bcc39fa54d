"""Compiled code, loaded into this process."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from .job import Job
from .operand import Operand


class Native:
    """A package, loaded. It takes what it was compiled for alone, which :meth:`takes` tells."""

    def __init__(self, path: Path, job: Job) -> None:
        """Raises ``RuntimeError`` for what is no package."""
        count = len(job.operands) - len(job.weights)
        self._path, self._names, self._weights = path, job.weights, list[Tensor]()
        self._inputs, self._operands = job.operands[:count], job.operands[count:]
        self._run = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", False, 2, -1)

    @property
    def source(self) -> str:
        with zipfile.ZipFile(self._path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".cpp")]
            return "\n\n".join(archive.read(name).decode() for name in names)

    def takes(self, inputs: Sequence[Any]) -> bool:
        return _fit(self._inputs, inputs)

    def __call__(self, inputs: Sequence[Any]) -> Any:
        return tuple(self._run.boxed_run([*inputs, *self._weights]))

    def bind(self, module: GraphModule) -> bool:
        """Takes the weights that ``module`` has now, if it was compiled for such."""
        weights = [attrgetter(name)(module) for name in self._names]
        fits = _fit(self._operands, weights)
        if fits:
            self._weights = weights
        return fits


def _fit(operands: Sequence[Operand], values: Sequence[Any]) -> bool:
    return all(operand.takes(value) for operand, value in zip(operands, values, strict=True))
