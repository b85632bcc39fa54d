"""A pattern for each layer, for a budget of arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..codegen.errors import ConfigError
from ..codegen.nm.pattern import DENSE, NM
from .batch import Batch, relative_error
from .layers import PRODUCTS

CHOICES = (NM(3, 4), NM(2, 4), NM(1, 4))


class Switchable(Protocol):
    """What the search asks of :class:`.SparseWeights`."""

    model: nn.Module

    @property
    def layers(self) -> dict[str, NM]: ...

    @property
    def candidates(self) -> tuple[str, ...]: ...

    def fits(self, name: str, pattern: NM) -> bool: ...

    def apply(self, patterns: Mapping[str, NM]) -> None: ...


class Found(NamedTuple):
    """What a search chose."""

    layers: dict[str, NM]
    share: float
    """Of the MACs of all linear layers and convolutions, those that are left."""
    error: float
    """Of the output on the inputs of the search: squared, relative to the dense output's."""


class _Move(NamedTuple):
    price: float
    """Error that it adds for each MAC that it saves."""
    name: str
    pattern: NM


@torch.no_grad()
def search(
    weights: Switchable,
    budget: float,
    inputs: Sequence[Batch],
    choices: Sequence[NM],
    progress: Callable[[int, int], None] | None,
) -> Found:
    """See :meth:`.SparseWeights.search`."""
    if not inputs:
        raise ConfigError("inputs is empty: give Batch(args) of some calls, at several timesteps")
    before = weights.layers
    try:
        weights.apply({})
        taught, macs = _dense(weights.model, inputs)
        errors = _measured(weights, taught, choices, progress)
        layers, left = _chosen(errors, macs, budget)
    except BaseException:
        weights.apply(before)
        raise
    weights.apply(layers)
    return Found(layers, left, relative_error(weights.model, taught))


def _chosen(
    errors: dict[str, dict[NM, float]], macs: dict[str, int], budget: float
) -> tuple[dict[str, NM], float]:
    """The patterns that meet the budget, and the share of MACs that they leave."""
    total, layers = sum(macs.values()), dict.fromkeys(errors, DENSE)
    left = float(total)
    while left > budget * total:
        best = min(_moves(errors, macs, layers), default=None)
        if best is None:
            raise ConfigError(
                f"budget={budget}: {left / total:.3f} of the MACs are left with the sparsest of "
                "the choices; give sparser ones, or let more layers be sparse"
            )
        left -= (layers[best.name].share - best.pattern.share) * macs[best.name]
        layers[best.name] = best.pattern
    return {name: pattern for name, pattern in layers.items() if not pattern.is_dense}, left / total


def _moves(
    errors: dict[str, dict[NM, float]], macs: dict[str, int], layers: dict[str, NM]
) -> Iterator[_Move]:
    """All ways to make one layer sparser."""
    for name, known in errors.items():
        now = layers[name]
        for pattern, error in known.items():
            saved = (now.share - pattern.share) * macs[name]
            if saved > 0:
                yield _Move((error - known[now]) / saved, name, pattern)


def _measured(
    weights: Switchable,
    taught: Sequence[Batch],
    choices: Sequence[NM],
    progress: Callable[[int, int], None] | None,
) -> dict[str, dict[NM, float]]:
    """The error of each choice that a layer can have, all other layers dense."""
    errors: dict[str, dict[NM, float]] = {name: {DENSE: 0.0} for name in weights.candidates}
    pairs = [(n, pattern) for n in errors for pattern in choices if weights.fits(n, pattern)]
    for done, (name, pattern) in enumerate(pairs, 1):
        weights.apply({name: pattern})
        errors[name][pattern] = relative_error(weights.model, taught)
        if progress is not None:
            progress(done, len(pairs))
    return errors


def _dense(model: nn.Module, inputs: Sequence[Batch]) -> tuple[list[Batch], dict[str, int]]:
    """The calls with their outputs, and the MACs of each linear layer and convolution."""
    macs: dict[str, int] = {}
    with ExitStack() as hooks:
        for name, part in model.named_modules():
            if isinstance(part, PRODUCTS):
                macs[name] = 0
                hooks.enter_context(_counted(name, part, macs))
        return [replace(batch, taught=batch.call(model)) for batch in inputs], macs


@contextmanager
def _counted(name: str, layer: nn.Module, macs: dict[str, int]) -> Iterator[None]:
    """Inside, the MACs of calls of ``layer`` are added up."""

    def count(_: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = layer.weight
        sites = args[0] if getattr(layer, "transposed", False) else output
        macs[name] += sites.numel() * weight[0].numel()

    hook = layer.register_forward_hook(count)
    try:
        yield
    finally:
        hook.remove()
