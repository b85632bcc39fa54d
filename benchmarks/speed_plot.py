"""The CPU benchmark's picture: speed-up over the share that is edited, below its bound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.masks import MASKS
from examples.demo_plots import ACCENT, INK, LINE, MUTED, STYLE

COLORS = dict(zip(MASKS, (ACCENT, "#1c7ed6"), strict=True))
COLUMNS = 3


def plot(results: Sequence[dict[str, Any]], path: Path) -> None:
    """Saves a PNG with a panel for each network."""
    rows = -(-len(results) // COLUMNS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4 * COLUMNS, 3.0 * rows + 0.8), layout="constrained")
        grid = figure.subplots(rows, COLUMNS, squeeze=False).flatten()
        for axis, result in zip(grid, results, strict=False):
            _panel(axis, result)
        for axis in grid[len(results) :]:
            axis.set_axis_off()
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
        against = "compiled" if results[0]["dense_compiled"] else "eager"
        figure.suptitle(
            f"Speed-up of an update over the {against} dense model, medians, CPU", weight="bold"
        )
        figure.savefig(path, dpi=130)


def _panel(axis: Axes, result: dict[str, Any]) -> None:
    for kind, color in COLORS.items():
        # With every site edited the two masks are the same.
        rows = [row for row in result["edits"] if row["mask"] == kind or row["share"] == 1]
        shares = [100 * row["edited"] for row in rows]
        bounds, reached = ([row[key] for row in rows] for key in ("mac_bound", "speedup"))
        axis.plot(shares, bounds, color=color, ls="--", lw=1, label=f"{kind}, bound by MACs")
        axis.plot(shares, reached, color=color, marker="o", ms=3.5, lw=1.6, label=f"{kind}")
    axis.axhline(1, color=MUTED, lw=0.8, zorder=0)
    axis.set(xscale="log", yscale="log", xlabel="sites edited, %")
    dense = (result["dense_compiled"] or result["dense_eager"])["median_ms"]
    axis.set_title(f"{result['network']}  ({dense:,.0f} ms dense)", color=INK, loc="left")
    axis.grid(which="major", color=LINE, lw=0.5)
    _ticks(axis, result)


def _ticks(axis: Axes, result: dict[str, Any]) -> None:
    """Plain numbers: the shares below, and few speed-ups at the side."""
    squares = [100 * row["edited"] for row in result["edits"] if row["mask"] == "square"]
    axis.set_xticks(squares, [f"{share:.2g}" if share < 100 else "100" for share in squares])
    highest = max(max(row["mac_bound"], row["speedup"]) for row in result["edits"])
    steps = [step for step in (0.25, 0.5, 1, 2, 3, 5, 10, 20, 50, 100, 200) if step <= highest]
    axis.set_yticks(steps)
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
