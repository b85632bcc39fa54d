"""Arguments and options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .. import config
from ..module import SparseModule, sparsify
from .from_diffusers import FromDiffusers
from .models import Example, FromPython, Source

console = Console()

FORMS = "diffusers:Class[:config.json or folder] or python:module:function"


def source(text: str) -> Source:
    """The model that ``text`` names; nothing is imported yet. Raises ``typer.BadParameter``."""
    kind, _, rest = text.partition(":")
    first, _, second = rest.partition(":")
    if kind == "python" and first and second and not first.startswith("."):
        return FromPython(first, second)
    if kind == "diffusers" and first:
        name, _, method = first.partition(".")
        return FromDiffusers(name, method, Path(second) if second else None)
    raise typer.BadParameter(f"{text!r} is not {FORMS}")


def grid(text: str) -> tuple[str, tuple[int, int]]:
    """``name=HxW``. Raises ``typer.BadParameter``."""
    found = re.fullmatch(r"(.+)=(\d+)x(\d+)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is not NAME=HxW, as in hidden_states=64x64")
    return found[1], (int(found[2]), int(found[3]))


Model = Annotated[Source, typer.Argument(parser=source, metavar="MODEL", help=f"{FORMS}.")]
Policy = Annotated[
    config.Policy,
    typer.Option(help="fixed: masks do not grow, fast; exact: equal to the dense run."),
]
Dilate = Annotated[
    int | None,
    typer.Option(min=0, help="Input pixels by which an edit is widened; by the input's grid."),
]
DenseShare = Annotated[
    float,
    typer.Option(help="The smallest grids are computed whole, up to this share of the work."),
]
Backend = Annotated[
    config.Backend,
    typer.Option(help="inductor compiles, dense and update alike; eager runs graphs as they are."),
]
Share = Annotated[
    float,
    typer.Option(min=0, max=1, help="Edited share of the picture, a square in its middle."),
]
Grid = Annotated[
    list[Any] | None,
    typer.Option(parser=grid, metavar="NAME=HxW", help="The grid of an input that is tokens."),
]


def sparse_model(
    model: Source, grids: list[Any] | None, **settings: Any
) -> tuple[SparseModule, Example]:
    """The model under the command's options, and the inputs of one call."""
    with console.status("building the model"):
        example = model.build(dict(grids or ()))
    return sparsify(example.model, grids=example.grids, **settings), example
