"""``sparsify export``: the graphs of a model as files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..config import SparsifyConfig
from . import options
from .options import console, sparse_model

EXAMPLES = (
    "sparsify export diffusers:UNet2DModel:church/ church.sparse",
    "sparsify export python:mymodels:upscaler upscaler.sparse --format onnx --policy exact",
)


def command(
    model: options.Model,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Folder to write to.")],
    format: Annotated[
        Literal["pt2", "onnx", "aoti"],
        typer.Option(help="pt2: torch.export; onnx: ONNX Runtime; aoti: compiled, no Python."),
    ] = "pt2",
    policy: options.Policy = SparsifyConfig.policy,
    dilate: options.Dilate = SparsifyConfig.dilate,
    dense_share: options.DenseShare = SparsifyConfig.dense_share,
    grid: options.Grid = None,
) -> None:
    """Write the record, plan and update graphs for inputs like the example's to a folder."""
    sparse, example = sparse_model(
        model, grid, policy=policy, dilate=dilate, dense_share=dense_share
    )
    with console.status(f"exporting as {format}"):
        sparse.export(path, *example.args, format=format, **example.kwargs)
    console.print(f"written to [bold]{path}[/]", highlight=False)
