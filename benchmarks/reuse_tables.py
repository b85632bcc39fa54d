"""What the reuse benchmark prints and draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from rich.table import Table
from torch import Tensor

from benchmarks.speed_tables import plain_table
from examples.demo_plots import INK, MUTED, STYLE

TILE = 1.15  # inches


def quality(result: dict[str, Any]) -> Table:
    table = plain_table("method", "calls", "MACs", "PSNR\ndB", "of mean\nerror", "when\ncalibrated")
    table.title = f"{result['pictures']} pictures, against those of {result['steps']} steps"
    for row in result["rows"]:
        calibrated = row.get("psnr_of_calibration")
        table.add_row(
            row["method"],
            str(row["calls"]),
            f"{row['macs_share']:.2f}",
            f"{row['psnr']:.1f}",
            f"{row['psnr_of_mean_error']:.1f}",
            "" if calibrated is None else f"{calibrated:.1f}",
        )
    return table


def time(result: dict[str, Any]) -> Table:
    table = plain_table("run", "seconds", "+-", "share\nof time", "share\nof calls")
    table.title = f"{result['calls']} of {result['steps']} calls: {result['psnr']:.1f} dB"
    shares = {"full": (1.0, 1.0), "schedule": (result["share_of_time"], result["share_of_calls"])}
    for name, (of_time, of_calls) in shares.items():
        table.add_row(name, *_cells(result["times"][name]), f"{of_time:.3f}", f"{of_calls:.3f}")
    return table


def propagation(result: dict[str, Any]) -> Table:
    table = plain_table(
        "network", "key steps", "dense\ns", "key\ns", "reuse\ns", "MAC\nbound",
        "speed\nup", "of\nbound",
    )  # fmt: skip
    table.title = f"encoder propagation, a run of {result['steps']} steps"
    for row in result["rows"]:
        times = [_cells(row["times"][name])[0] for name in ("dense", "key", "reuse")]
        for run in row["schedules"]:
            table.add_row(
                row["network"],
                f"{len(run['keys'])} ({run['variant']})",
                *times,
                f"{run['mac_bound']:.2f}x",
                f"{run['speedup']:.2f}x",
                f"{run['of_bound']:.2f}",
            )
    return table


def space(result: dict[str, Any]) -> Table:
    table = plain_table(
        "run", "MACs", "seconds", "+-", "MAC\nbound", "speed\nup", "PSNR\ninside, dB"
    )
    table.title = (
        f"an edit of {result['edited']:.1%} ({result['active']:.1%} once widened), "
        f"{result['calls']} of {result['steps']} calls; inside, the recorded picture has "
        f"{result['psnr_of_recorded']:.1f} dB"
    )
    for row in result["rows"]:
        table.add_row(
            row["run"],
            f"{row['macs_share']:.3f}",
            *_cells(row["time"]),
            f"{row['mac_bound']:.2f}x",
            f"{row['speedup']:.2f}x",
            f"{row['psnr']:.1f}" if "psnr" in row else "",
        )
    return table


TABLES: dict[str, Callable[[dict[str, Any]], Table]] = {
    "quality": quality,
    "time": time,
    "propagation": propagation,
    "space": space,
}


def panel(rows: Mapping[str, Tensor], prompts: Sequence[str], path: Path) -> None:
    """Saves a PNG: a row of pictures [N, 3, H, W] for each run, a column for each prompt."""
    with mpl.rc_context(STYLE):
        size = (TILE * len(prompts) + 0.9, TILE * len(rows) + 0.5)
        figure = Figure(figsize=size, layout="constrained")
        cells = figure.subplots(len(rows), len(prompts), squeeze=False)
        for line, (name, pictures) in zip(cells, rows.items(), strict=True):
            line[0].set_ylabel(name, color=INK)
            for axis, picture in zip(line, pictures, strict=True):
                axis.imshow(picture.permute(1, 2, 0).numpy())
                axis.set(xticks=[], yticks=[])
                axis.spines[:].set_visible(False)
        for axis, prompt in zip(cells[0], prompts, strict=True):
            half = len(prompt) // 2  # in two lines, broken at the space nearest to the middle
            spaces = [place for place, letter in enumerate(prompt) if letter == " "]
            place = min(spaces, key=lambda place: abs(place - half))
            axis.set_title(f"{prompt[:place]}\n{prompt[place + 1 :]}", color=MUTED, fontsize=7)
        figure.savefig(path, dpi=130)


def _cells(time: dict[str, float]) -> tuple[str, str]:
    """Median, and the distance to the farthest run."""
    median = time["median_s"]
    spread = max(median - time["min_s"], time["max_s"] - median)
    return f"{median:.3g}", f"[dim]{spread:.2g}[/]"
