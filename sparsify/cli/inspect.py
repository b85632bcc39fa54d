"""``sparsify inspect``: what is packed, and what an edit leaves of the work."""

from __future__ import annotations

from collections import Counter

from rich.table import Table

from ..config import SparsifyConfig
from ..masks import centred_square
from ..report import Report
from ..words import size_of
from . import options
from .options import console, sparse_model

EXAMPLES = (
    "sparsify inspect diffusers:UNet2DModel",
    "sparsify inspect diffusers:UNet2DConditionModel:unet/config.json --share 0.01",
    "sparsify inspect diffusers:FluxTransformer2DModel:flux.json --grid hidden_states=32x32",
)


def command(
    model: options.Model,
    share: options.Share = 0.05,
    policy: options.Policy = SparsifyConfig.policy,
    dilate: options.Dilate = SparsifyConfig.dilate,
    dense_share: options.DenseShare = SparsifyConfig.dense_share,
    grid: options.Grid = None,
) -> None:
    """Show by node what an update computes, the masks of all grids, and the work left."""
    sparse, example = sparse_model(
        model, grid, policy=policy, dilate=dilate, dense_share=dense_share
    )
    with console.status("capturing, rewriting and recording"):
        _, baseline = sparse.record(*example.args, **example.kwargs)
        sparse.plan(centred_square(baseline.grid, share))
    report = sparse.report()
    console.print(report)
    console.print(_grids(report, share))
    console.print(
        f"MACs left: {report.share_left:.1%} of the dense model's; "
        f"baseline: {size_of(baseline.nbytes)}"
    )


def _grids(report: Report, share: float) -> Table:
    """The mask of every grid, the widest where it grows, and how many nodes go by it."""
    table = Table(title=f"active sites for an edit of {share:.1%}")
    for column in ("grid", "sites", "active", "share", "nodes packed", "nodes whole"):
        table.add_column(column, justify="right")
    count = Counter((node.grid, node.state) for node in report if node.grid)
    grids = {grid for grid, state in count if grid and state in ("packed", "dense")}
    for grid in sorted(grids, key=lambda grid: -grid[0] * grid[1]):
        sites, packed, whole = grid[0] * grid[1], count[grid, "packed"], count[grid, "dense"]
        active = int(report.masks[grid].view(-1, *grid).any(0).sum()) if packed else sites
        row = (sites, active, f"{active / sites:.1%}", packed, whole)
        table.add_row(f"{grid[0]}x{grid[1]}", *map(str, row))
    return table
