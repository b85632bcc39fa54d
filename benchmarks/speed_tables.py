"""What the CPU benchmark prints of its results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

WORST = 25
LONGEST = 26  # names, of which the end says most


def summary(result: dict[str, Any]) -> str:
    """The network, and what is there once."""
    seconds, machine, gib = result["seconds"], result["machine"], 2**30
    compiled = "".join(
        f", {name.replace('_', ' ')} {seconds[name]:.0f} s"
        for name in ("dense_compile", "update_compile")
        if name in seconds
    )
    return (
        f"[bold]{result['network']}[/] ({result['weights']} weights, "
        f"{result['parameters'] / 1e6:.0f} M, {result['macs_dense'] / 1e9:.1f} GMACs)\n"
        f"dense eager {_spread(result['dense_eager'])} ms, "
        f"compiled {_spread(result['dense_compiled'])} ms, record {_spread(result['record'])} ms\n"
        f"{_baseline(result)}{compiled}, capture and rewrite "
        f"{seconds['capture_and_rewrite']:.0f} s\n"
        f"peak of the process {result['peak_process_mib']:.0f} MiB; beyond weights and inputs "
        + ", ".join(f"{name} {mib:.0f}" for name, mib in result["peak_mib"].items())
        + f" MiB\ndense rate {machine['dense_macs_s'] / 1e9:.1f} GMAC/s "
        f"(a product: {machine['product_macs_s'] / 1e9:.1f}), "
        f"reads {machine['read_bytes_s'] / gib:.1f}, copies {machine['copy_bytes_s'] / gib:.1f} "
        f"GiB/s; update of all sites against dense: {result['error_of_full_edit']:.1e}"
    )


def _baseline(result: dict[str, Any]) -> str:
    narrow = result["narrow_baseline"]
    edit = next(row for row in result["edits"] if row["share"] == 0.05)
    return (
        f"baseline {result['baseline_mib']:.0f} MiB, restricted to a 5% edit "
        f"{edit['restricted_mib']:.0f}, in bfloat16 {narrow['mib']:.0f} "
        f"(that edit then {narrow['psnr_db']:.0f} dB)"
    )


def edits_table(result: dict[str, Any]) -> Table:
    """A row for each edit; speed-ups are against the compiled dense model, if there is one."""
    table = plain_table(
        "edited", "mask", "eager\nms", "compiled\nms", "+-", "speed\nup", "MAC\nbound",
        "floor\nms", "time /\nfloor", "plan\nms", "peak\nMiB",
    )  # fmt: skip
    for row in result["edits"]:
        table.add_row(
            f"{100 * row['share']:.3g}%",
            row["mask"],
            _cells(row["update_eager"])[0],
            *_cells(row["update_compiled"]),
            f"{row['speedup']:.2f}x",
            f"{row['mac_bound']:.2f}x",
            f"{row['floor_ms']:.1f}",
            f"{row['over_floor']:.2f}",
            f"{row['plan']['median_ms']:.0f}",
            f"{list(row['peak_mib'].values())[-1]:.0f}",
        )
    return table


def nodes_table(result: dict[str, Any]) -> Table:
    """The nodes that lose most time to their floor, and all of them together."""
    nodes = result["nodes"]
    table = plain_table("node", "operator", "ms", "floor\nms", "lost\nms", "GMACs")
    table.title = f"{result['network']}: the update's nodes, eagerly"
    for row in [*nodes[:WORST], _all(nodes)]:
        table.add_row(
            (row["module"] or row["node"])[-LONGEST:],
            row["operator"],
            f"{row['ms']:.2f}",
            f"{row['floor_ms']:.2f}",
            f"{row['lost_ms']:.2f}",
            f"{row['macs'] / 1e9:.3f}",
        )
    return table


def _all(nodes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    sums = {key: sum(row[key] for row in nodes) for key in ("ms", "floor_ms", "macs", "bytes")}
    lost = sum(row["lost_ms"] for row in nodes)
    return {"module": f"all {len(nodes)}", "operator": "", "lost_ms": lost, **sums}


def overview(results: Sequence[dict[str, Any]]) -> Table:
    """Speed-ups of the centred square, and how far they are from the floor."""
    shares = [row["share"] for row in results[0]["edits"] if row["mask"] == "square"]
    table = plain_table("network", "dense ms", *(f"{100 * share:.3g}%" for share in shares))
    table.title = "speed-up over dense [dim](time over floor)[/], centred square"
    for result in results:
        dense = result["dense_compiled"] or result["dense_eager"]
        rows = [row for row in result["edits"] if row["mask"] == "square"]
        cells = (f"{row['speedup']:.2f}x\n[dim]({row['over_floor']:.1f})[/]" for row in rows)
        table.add_row(result["network"], f"{dense['median_ms']:.0f}", *cells)
    return table


def plain_table(*columns: str) -> Table:
    """Names stand at the left, numbers at the right."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title_style="bold", pad_edge=False)
    for column in columns:
        is_text = column in ("mask", "method", "network", "node", "operator", "run")
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True)
    return table


def _cells(time: dict[str, float] | None) -> tuple[str, str]:
    """Median, and the distance to the farthest run."""
    if time is None:
        return "-", ""
    median, digits = time["median_ms"], 1 if time["median_ms"] < 100 else 0
    spread = max(median - time["min_ms"], time["max_ms"] - median)
    return f"{median:.{digits}f}", f"[dim]{spread:.{digits}f}[/]"


def _spread(time: dict[str, float] | None) -> str:
    """Both in words."""
    return "-" if time is None else " +- ".join(_cells(time))
