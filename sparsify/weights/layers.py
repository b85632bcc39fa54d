"""Which layers of a model can have sparse weights, and why the others stay dense."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from torch import nn
from torch.nn.utils import parametrize

from ..codegen.nm.pattern import NM

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
"""Layers that multiply by a weight of their own."""
_BY_NAME = {
    "an embedding": re.compile(r"embed|(^|[._]|t)emb|(^|[._])(time|timestep|label|patch)([._]|$)"),
    "a skip connection": re.compile(r"skip|shortcut"),
    "an adapter": re.compile(r"(^|[._])lora_"),
}
"""Layers that SparseDM leaves dense in its transformers, by what the field calls them."""


class Layer(NamedTuple):
    """A linear layer or a convolution, with the sizes of its weight [O, I, *taps]."""

    module: nn.Module
    outputs: int
    inputs: int
    groups: int
    order: tuple[str, ...]
    """Of its parameters: optimizers know them by their place."""

    @staticmethod
    def of(module: Any) -> Layer:
        outputs, inputs = module.weight.shape[:2]
        return Layer(
            module, outputs, inputs, getattr(module, "groups", 1), tuple(module._parameters)
        )

    def misfit(self, pattern: NM, pad: bool) -> str | None:
        """Why the weight cannot have this ``pattern``, if it cannot."""
        outputs = self.outputs // self.groups
        if pattern.is_dense:
            return None
        if self.inputs <= pattern.n:
            return f"{pattern.n} of {pattern.m} is all of its inputs, {self.inputs}"
        if self.inputs % pattern.m and not pad:
            return f"{pattern.m} does not divide its inputs, {self.inputs}: pad=True fills them up"
        if outputs % pattern.v and self.groups > 1:
            return f"v={pattern.v} does not divide the outputs of a group, {outputs}"
        if outputs % pattern.v and not pad:
            return f"v={pattern.v} does not divide its outputs, {outputs}: pad=True fills them up"
        return None


def split(
    model: nn.Module, include: Sequence[str], exclude: Sequence[str]
) -> tuple[dict[str, Layer], dict[str, str]]:
    """Layers by name that can be sparse, and for each of the others the reason why it is not.

    What a pattern of ``include`` names is taken, whatever it is for; without one, all layers but
    the first, the last, embeddings and skip connections.
    """
    modules = dict(model.named_modules())
    products = [name for name, part in modules.items() if isinstance(part, PRODUCTS)]
    refused = {
        name: "an nn.MultiheadAttention has three projections in one weight"
        for name, part in modules.items()
        if isinstance(part, nn.MultiheadAttention)
    }
    chosen: dict[str, Layer] = {}
    for name in products:
        why = _kind(modules[name]) or _role(name, products, include, exclude)
        if why is None:
            chosen[name] = Layer.of(modules[name])
        else:
            refused[name] = why
    return chosen, refused


def several(patterns: str | Sequence[str]) -> tuple[str, ...]:
    """One pattern, or more."""
    return (patterns,) if isinstance(patterns, str) else tuple(patterns)


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Is ``name`` one of ``patterns``, as file names are matched?"""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _kind(layer: nn.Module) -> str | None:
    if isinstance(layer, _TRANSPOSED):
        return "a transposed convolution has its inputs along another axis of the weight"
    if parametrize.is_parametrized(layer, "weight"):
        return "its weight has a parametrization already"
    if not isinstance(layer.weight, nn.Parameter):
        return "its weight is no parameter"
    return None


def _role(
    name: str, products: Sequence[str], include: Sequence[str], exclude: Sequence[str]
) -> str | None:
    if matches(name, exclude):
        return "excluded"
    if include:
        return None if matches(name, include) else "not included"
    if name == products[0]:
        return "the first layer"
    if name == products[-1]:
        return "the last layer"
    return next((what for what, words in _BY_NAME.items() if words.search(name)), None)
