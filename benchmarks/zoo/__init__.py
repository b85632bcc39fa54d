"""Tiny configurations of the classes in diffusers, with inputs for one call each.

One module a family. An example is a function that returns an :class:`Example`; ``@tiny`` names
the class of diffusers that it builds. What holds no picture is listed in ``NO_PICTURE``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers.models
from diffusers import ModelMixin
from torch import nn


@dataclass(frozen=True)
class Example:
    """A model in eval mode, keyword arguments of one call, and options for ``sparsify``."""

    model: nn.Module
    inputs: dict[str, Any]
    edit: str
    """The input that an edit changes: an image [N, C, H, W], or tokens on ``grids``."""
    options: dict[str, Any] = field(default_factory=dict)


Build = Callable[[], Example]

TINY: dict[str, Build] = {}
FULL: dict[str, Build] = {}
"""Published sizes of the best known, built on the meta device."""
NO_PICTURE: dict[str, str] = {}
"""Classes that hold no picture, and what they hold instead."""


def tiny(name: str) -> Callable[[Build], Build]:
    """Registers the example of a class."""

    def add(build: Build) -> Build:
        TINY[name] = build
        return build

    return add


def full(name: str) -> Callable[[Build], Build]:
    """Registers a published configuration, under the name that people know."""

    def add(build: Build) -> Build:
        FULL[name] = build
        return build

    return add


def classes() -> list[str]:
    """Every model class that diffusers defines, private ones left out."""
    found = set()
    for info in pkgutil.walk_packages(diffusers.models.__path__, "diffusers.models."):
        try:
            module = importlib.import_module(info.name)
        except ImportError:
            continue  # a part that needs a package which is not installed
        for name, value in vars(module).items():
            is_model = inspect.isclass(value) and issubclass(value, ModelMixin)
            if is_model and value.__module__ == info.name and hasattr(diffusers, name):
                found.add(name)
    return sorted(found - {"ModelMixin"})


def load() -> None:
    """Imports the families, which fills the tables above."""
    for info in pkgutil.iter_modules(__path__, f"{__name__}."):
        importlib.import_module(info.name)
