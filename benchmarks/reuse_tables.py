"""What the reuse benchmark prints and draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.table import Table

from benchmarks.speed_tables import plain_table


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
        table.add_row(name, *cells(result["times"][name]), f"{of_time:.3f}", f"{of_calls:.3f}")
    return table


def propagation(result: dict[str, Any]) -> Table:
    table = plain_table(
        "network", "key steps", "dense\ns", "key\ns", "reuse\ns", "MAC\nbound",
        "speed\nup", "of\nbound",
    )  # fmt: skip
    table.title = f"encoder propagation, a run of {result['steps']} steps"
    for row in result["rows"]:
        times = [cells(row["times"][name])[0] for name in ("dense", "key", "reuse")]
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
            *cells(row["time"]),
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


def cells(time: dict[str, float]) -> tuple[str, str]:
    """Median, and the distance to the farthest run."""
    median = time["median_s"]
    spread = max(median - time["min_s"], time["max_s"] - median)
    return f"{median:.3g}", f"[dim]{spread:.2g}[/]"
