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

    stepped: frozenset[str]
    """Those that are called at each step: denoisers and ControlNets."""
    decoders: frozenset[str]
    encoders: frozenset[str]
    """Of these, by names as ``"vae.encoder"``."""

    def __init__(self, pipe: Any, config: SparsifyConfig) -> None:
        """Raises :class:`ModelError` for what is no pipeline, or has no model that is called at
        each step."""
        components = getattr(pipe, "components", None)
        if not isinstance(components, dict):
            raise ModelError(
                f"a {type(pipe).__name__} is no pipeline of diffusers: sparsify(model) takes models"
            )
        models = {name: own for name, own in components.items() if isinstance(own, nn.Module)}
        decoders = {name: model for name, model in models.items() if _is_decoder(model)}
        self.stepped = frozenset(n for n in models.keys() - decoders if _is_stepped(models[n]))
        if not self.stepped:
            raise ModelError(
                f"no component of the {type(pipe).__name__} takes a timestep, so none is a denoiser"
            )
        self._pipe = pipe
        self._places: dict[str, tuple[Any, str]] = {
            name: (pipe, name) for name in models if name in self.stepped | decoders.keys()
        }
        """What has each model as which attribute."""
        for name, model in decoders.items():
            if isinstance(getattr(model, "encoder", None), nn.Module):
                self._places[f"{name}.encoder"] = model, "encoder"
        self.decoders = frozenset(decoders)
        self.encoders = frozenset(self._places.keys() - self.stepped - self.decoders)
        self._own = {name: getattr(*place) for name, place in self._places.items()}
        self._sparse = {name: _sparse(model, config) for name, model in self._own.items()}
        for name, sparse in self._sparse.items():
            setattr(*self._places[name], sparse)

    def __repr__(self) -> str:
        return f"<Parts of a {type(self._pipe).__name__}: {', '.join(self)}>"

    def __getitem__(self, name: str) -> SparseModule:
        return self._sparse[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sparse)

    def __len__(self) -> int:
        return len(self._sparse)

    def is_in_place(self, name: str) -> bool:
        """Does the pipeline call this model, and no other that was put in its place since?"""
        return getattr(*self._places[name]) is self._sparse[name]

    def close(self) -> None:
        """The pipeline has its own models again; what was put in their place since stays there."""
        for name, own in self._own.items():
            if self.is_in_place(name):
                setattr(*self._places[name], own)


def enable(pipe: Any, config: SparsifyConfig | None = None, **overrides: Any) -> Parts:
    """The denoisers, ControlNets and autoencoders of a diffusers pipeline, made sparse in place for
    a loop of one's own: ``parts["unet"]`` is a :class:`SparseModule`, as ``pipe.unet`` is.

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
