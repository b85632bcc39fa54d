"""The models that a pipeline calls, found by what they are, and made sparse in its place."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..closing import Closing
from ..codegen.errors import ModelError
from ..config import SparsifyConfig
from ..forecast import CLOCKS
from ..module import SparseModule, sparsify

ROW = (1, -1)
"""The grid of a denoiser's tokens, if it is given tokens: how they lie in the picture, and what
stands behind them, is known once a run was recorded (:mod:`.lattice`)."""


class Parts(Mapping[str, SparseModule], Closing):
    """The sparse models of a pipeline, by the names of its components, until they are closed."""

    def __init__(self, pipe: Any, config: SparsifyConfig) -> None:
        """Raises :class:`ModelError` for what is no pipeline, or has no model that is called at
        each step."""
        components = getattr(pipe, "components", None)
        if not isinstance(components, dict):
            raise ModelError(
                f"a {type(pipe).__name__} is no pipeline of diffusers: sparsify(model) takes models"
            )
        self._pipe = pipe
        self._own = {
            name: model
            for name, model in components.items()
            if isinstance(model, nn.Module) and (_is_decoder(model) or _is_stepped(model))
        }
        self.decoders = frozenset(n for n, model in self._own.items() if _is_decoder(model))
        if not self._own.keys() - self.decoders:
            raise ModelError(
                f"no component of the {type(pipe).__name__} takes a timestep, so none is a denoiser"
            )
        self._sparse = {name: _sparse(model, config) for name, model in self._own.items()}
        for name, sparse in self._sparse.items():
            setattr(pipe, name, sparse)

    def __repr__(self) -> str:
        return f"<Parts of a {type(self._pipe).__name__}: {', '.join(self)}>"

    def __getitem__(self, name: str) -> SparseModule:
        return self._sparse[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sparse)

    def __len__(self) -> int:
        return len(self._sparse)

    def close(self) -> None:
        """The pipeline has its own models again; what was put in their place since stays there."""
        for name, sparse in self._sparse.items():
            if getattr(self._pipe, name) is sparse:
                setattr(self._pipe, name, self._own[name])


def enable(pipe: Any, config: SparsifyConfig | None = None, **overrides: Any) -> Parts:
    """The denoisers, ControlNets and decoders of a diffusers pipeline, made sparse in place, for a
    sampling loop of one's own: ``parts["unet"]`` is a :class:`SparseModule`, as ``pipe.unet`` is.

    ``overrides`` are fields of :class:`SparsifyConfig`. ``close()``, or the end of a ``with``,
    gives the pipeline its own models back. Raises :class:`ModelError` and :class:`ConfigError`.

    >>> with enable(pipe) as parts, parts["unet"].recording() as session:
    ...     pipe(prompt)
    """
    return Parts(pipe, SparsifyConfig.of(config, overrides))


def _sparse(model: nn.Module, config: SparsifyConfig) -> SparseModule:
    """``grids`` are those of the inputs that the model has."""
    method = "decode" if _is_decoder(model) else "forward"
    names = list(inspect.signature(getattr(model, method)).parameters)
    grids = {name: grid for name, grid in config.grids.items() if name in names}
    if method == "forward":
        grids = {names[0]: ROW, **grids}
    return sparsify(model, replace(config, grids=grids), method=method)


def _is_decoder(model: nn.Module) -> bool:
    return callable(getattr(type(model), "decode", None))


def _is_stepped(model: nn.Module) -> bool:
    return not CLOCKS.isdisjoint(inspect.signature(model.forward).parameters)
