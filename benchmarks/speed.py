"""Dense eager, dense compiled and update, side by side: ``python -m benchmarks.speed NAME ...``.

All variants run interleaved in one process on the same inputs; medians are printed and written
to ``docs/benchmarks/NAME.json``. Large tensors cost page faults under glibc's default
allocator, for the dense model most: set MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ high
(``make bench`` does), which both sides then share.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.networks import Network, full
from sparsify import sparsify
from sparsify.module import SparseModule

SHARES = (0.012, 0.05, 0.15, 0.3)
SETTINGS = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "OMP_WAIT_POLICY",
)
console = Console()


def centred_square(grid: tuple[int, int], share: float) -> Tensor:
    """bool [H, W]: a centred rectangle of this share of the sites."""
    mask = torch.zeros(grid, dtype=torch.bool)
    height, width = (max(1, round(side * share**0.5)) for side in grid)
    top, left = (grid[0] - height) // 2, (grid[1] - width) // 2
    mask[top : top + height, left : left + width] = True
    return mask


def interleaved(variants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every variant, all of them once a round, after one round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            run()
            if number:
                times[name].append(time.perf_counter() - start)
        console.log(f"round {number} of {rounds}")
    return times


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def measure(network: Network, backend: str, rounds: int) -> dict[str, Any]:
    """Everything that the table and the JSON show of one network."""
    torch.manual_seed(0)
    model = network.build().eval()
    args, kwargs = network.inputs()
    console.log(f"{network.name}: {sum(p.numel() for p in model.parameters()) / 1e6:.0f} M weights")
    compiled = torch.compile(model)
    dense_compile, _ = timed(lambda: compiled(*args, **kwargs))
    console.log(f"dense model compiled in {dense_compile:.0f} s")
    sparse = sparsify(model, dilate=network.dilate, backend=backend)
    capture, _ = timed(lambda: sparse.graphs(*args, **kwargs))
    record_first, (_, baseline) = timed(lambda: sparse.record(*args, **kwargs))
    record, _ = timed(lambda: sparse.record(*args, **kwargs))
    variants: dict[str, Callable[[], Any]] = {
        "dense eager": lambda: model(*args, **kwargs),
        "dense compiled": lambda: compiled(*args, **kwargs),
    }
    plans, rows = {}, []
    for share in SHARES:
        mask = centred_square(baseline.program.grid, share)
        seconds, plans[share] = timed(lambda mask=mask: sparse.plan(mask))
        rows.append({"edited_share": share, "plan_ms": seconds * 1e3, **_macs(sparse)})
        edited = (torch.where(mask, torch.randn_like(args[0]), args[0]), *args[1:])
        variants[f"update {share}"] = lambda edited=edited, share=share: sparse.update(
            baseline, *edited, mask=plans[share], **kwargs
        )
    update_compile, _ = timed(variants[f"update {SHARES[0]}"])
    console.log(f"update compiled in {update_compile:.0f} s")
    times = interleaved(variants, rounds)
    medians = {name: statistics.median(seconds) * 1e3 for name, seconds in times.items()}
    for row in rows:
        name = f"update {row['edited_share']}"
        row["update_ms"] = medians[name]
        row["spread_ms"] = (max(times[name]) - min(times[name])) * 1e3
        row["speedup_vs_dense"] = medians["dense eager"] / medians[name]
        row["speedup_vs_compiled"] = medians["dense compiled"] / medians[name]
    return {
        "network": network.name,
        "backend": backend,
        "dilate": network.dilate,
        "dense_ms": medians["dense eager"],
        "dense_compiled_ms": medians["dense compiled"],
        "record_ms": record * 1e3,
        "baseline_mib": baseline.nbytes / 2**20,
        "seconds": {
            "dense_compile": dense_compile,
            "capture_and_rewrite": capture,
            "record_compile_and_run": record_first,
            "update_compile_and_run": update_compile,
        },
        "edits": rows,
    }


def _macs(sparse: SparseModule) -> dict[str, float]:
    report = sparse.report()
    bound = report.macs_dense / report.macs_update
    return {"macs_dense": report.macs_dense, "macs_update": report.macs_update, "bound": bound}


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    cpu = Path("/proc/cpuinfo")
    names = [x for x in cpu.read_text().splitlines() if "model name" in x] if cpu.exists() else []
    return {
        "cpu": names[0].split(":")[1].strip() if names else platform.processor(),
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "settings": {name: os.environ.get(name, "default") for name in SETTINGS},
    }


def table(result: dict[str, Any]) -> Table:
    title = (
        f"{result['network']}: dense {result['dense_ms']:.0f} ms, "
        f"compiled {result['dense_compiled_ms']:.0f} ms"
    )
    view = Table(title=title)
    for column in ("edited", "update ms", "spread", "vs compiled", "vs eager", "MAC bound", "plan"):
        view.add_column(column, justify="right")
    for row in result["edits"]:
        view.add_row(
            f"{row['edited_share']:.1%}",
            f"{row['update_ms']:.0f}",
            f"{row['spread_ms']:.0f}",
            f"{row['speedup_vs_compiled']:.2f}x",
            f"{row['speedup_vs_dense']:.2f}x",
            f"{row['bound']:.2f}x",
            f"{row['plan_ms']:.0f} ms",
        )
    return view


def main() -> None:
    networks = full()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(networks))
    parser.add_argument("--backend", default="inductor", choices=["inductor", "eager"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        result = {**environment(), **measure(networks[name], options.backend, options.rounds)}
        (options.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        console.print(table(result))
        console.print({key: round(value) for key, value in result["seconds"].items()})


if __name__ == "__main__":
    main()
