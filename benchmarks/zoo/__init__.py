"""Tiny configurations of the classes in diffusers, with inputs for one call each: a table.

One module a family. ``tiny`` adds a row under the name of its class; a second row of a class has
a few words behind it, in parentheses. What holds no picture is listed in ``NO_PICTURE``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import diffusers.models
from diffusers import ModelMixin
from torch import nn

from benchmarks.zoo_noise import randomised

from .inputs import made


@dataclass(frozen=True)
class Example:
    """A model in eval mode, keyword arguments of one call, and options for ``sparsify``."""

    model: nn.Module
    inputs: dict[str, Any]
    edit: str
    """The input that an edit changes: an image [N, C, H, W], or tokens on ``grids``."""
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """A configuration of a class, and one call of it."""

    of: str
    """The class of diffusers."""
    inputs: dict[str, Any]
    """Values, and specifications of tensors (see :mod:`.inputs`)."""
    config: dict[str, Any]
    options: dict[str, Any]
    edit: str | None = None
    """None is the first input."""
    make: Callable[..., Any] | None = None
    """Builds the model in place of its class."""
    prepare: Callable[[Any], object] | None = None
    """Changes the model in place, as pipelines do."""
    wrap: Callable[[Any], nn.Module] | None = None
    """A module around the model, where one plain call does not do."""

    def __call__(self) -> Example:
        model = (self.make or getattr(diffusers, self.of))(**self.config)
        if self.prepare is not None:
            self.prepare(model)
        if self.wrap is not None:
            model = self.wrap(model)
        inputs = made(self.inputs)
        edit = self.edit or next(iter(inputs))
        return Example(randomised(model), inputs, edit, dict(self.options))


TINY: dict[str, Row] = {}
FULL: dict[str, Row] = {}
"""Published sizes of the best known, built on the meta device."""
NO_PICTURE: dict[str, str] = {}
"""Classes that hold no picture, and what they hold instead."""


def tiny(
    name: str,
    inputs: dict[str, Any],
    config: dict[str, Any],
    options: dict[str, Any] | None = None,
    **how: Any,
) -> None:
    """Adds a row: ``name`` is a class, or a class and what is special "(in parentheses)"."""
    TINY[name] = Row(name.partition(" (")[0], inputs, config, options or {}, **how)


def full(
    name: str,
    like: str,
    inputs: dict[str, Any],
    config: dict[str, Any],
    options: dict[str, Any] | None = None,
) -> None:
    """Adds a published configuration under the name that people know: a row of ``TINY`` with other
    inputs, configuration and options."""
    row = TINY[like]
    options = row.options if options is None else options
    FULL[name] = replace(row, inputs=row.inputs | inputs, config=config, options=options)


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
