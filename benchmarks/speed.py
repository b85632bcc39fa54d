"""The CPU benchmark: dense and update, eager and compiled: ``python -m benchmarks.speed``.

Each network runs in a process of its own (:mod:`benchmarks.measure`) and writes ``NAME.json``;
one that was measured by this commit with these settings is skipped. ``speed.png`` shows all that
there are files of.
Large tensors cost page faults under glibc's default allocator, for the dense model most:
``make bench`` has freed memory kept, for both sides.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.machine import environment
from benchmarks.measure import Settings, networks
from benchmarks.speed_plot import plot
from benchmarks.speed_tables import edits_table, nodes_table, overview, summary

NETWORKS = (
    "terrain",
    "autoencoder-kl-decoder",
    "ddpm-church-256",
    "gaugan-256x512",
    "dit-xl-2-256",
    "stable-diffusion-1.5",
)
QUICK = Settings(backend="eager", rounds=2, narrow=True)
console = Console()


def is_current(result: dict[str, Any], settings: Settings, now: dict[str, Any]) -> bool:
    """Was it measured by this commit, on such a machine, with these settings?"""
    wanted, had = asdict(settings), dict(result.get("options", {}))
    if settings.nodes is None:
        wanted["nodes"] = had.get("nodes")
    there = {key: value for key, value in result.get("environment", {}).items() if key != "date"}
    return had == wanted and there == {key: now[key] for key in now if key != "date"}


def load(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return result


def run_apart(name: str, settings: Settings, out: Path, progress: Progress) -> bool:
    """Measures one network; False, and the end of what it said, if it failed.

    The screen changes when a step begins and not meanwhile: drawing costs time too.
    """
    task = progress.add_task(name, total=settings.steps, step="starting")
    command = [sys.executable, "-m", "benchmarks.measure", name, json.dumps(asdict(settings))]
    with tempfile.TemporaryDirectory() as cache, tempfile.TemporaryFile("w+") as said:
        own_cache = {} if settings.warm else {"TORCHINDUCTOR_CACHE_DIR": cache}
        process = subprocess.Popen(
            [*command, str(out / f"{name}.json")],
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env={**os.environ, **own_cache},
            cwd=Path(__file__).parents[1],
        )
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            progress.update(task, completed=number, step=line.strip())
            if console.is_terminal:
                progress.refresh()
            else:  # nothing can be drawn over: a log has a line for each step
                console.print(f"{name}: {line.strip()}", markup=False)
        failed = process.wait() != 0
        said.seek(0)
        lines = said.read().splitlines()
    progress.update(task, completed=settings.steps, step="failed" if failed else "done")
    progress.refresh()
    for line in lines[-15:] if failed else [x for x in lines if x.startswith(name)]:
        progress.console.print(line, markup=False)
    return not failed


def measure_all(names: Sequence[str], settings: Settings, out: Path, again: bool) -> list[str]:
    """Writes what is missing; returns the names of those that failed."""
    now, failed = environment(), []
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), TimeElapsedColumn())
    progress = Progress(
        *columns, TextColumn("{task.fields[step]}"), console=console, auto_refresh=False
    )
    with progress:
        for name in names:
            if not again and is_current(load(out / f"{name}.json"), settings, now):
                progress.console.print(f"{name}: measured already")
            elif not run_apart(name, settings, out, progress):
                failed.append(name)
    return failed


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Time dense runs against updates on the CPU.")
    parser.add_argument("names", nargs="*", default=NETWORKS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="narrow networks, nothing compiled")
    parser.add_argument("--again", action="store_true", help="measure what is measured already")
    parser.add_argument("--warm", action="store_true", help="use inductor's cache: compile less")
    parser.add_argument("--rounds", type=int, help=f"{Settings().rounds}; quick: {QUICK.rounds}")
    parser.add_argument(
        "--nodes", type=float, nargs="?", const=0.05, help="time the nodes of an edit of this share"
    )
    parser.add_argument("--out", type=Path, help="docs/benchmarks; quick: build/benchmarks")
    options = parser.parse_args(arguments)
    known = networks(narrow=False)
    if unknown := set(options.names) - set(known):
        parser.error(f"{unknown.pop()} is not one of {', '.join(known)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    base = QUICK if options.quick else Settings()
    rounds = options.rounds or base.rounds
    settings = Settings(base.backend, rounds, base.narrow, options.warm, options.nodes)
    out = options.out or Path("build" if options.quick else "docs") / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    console.print("both sides:", " ".join(f"{k}={v}" for k, v in environment()["settings"].items()))
    failed = measure_all(options.names, settings, out.absolute(), options.again)
    files = {name: load(out / f"{name}.json") for name in (*NETWORKS, *options.names)}
    for result in (files[name] for name in options.names if name not in failed):
        console.print(summary(result), edits_table(result), "")
        if "nodes" in result and options.nodes is not None:
            console.print(nodes_table(result), "")
    if results := [result for result in files.values() if result]:
        console.print(overview(results))
        plot(results, out / "speed.png")
        console.print(f"Figures and {out / 'speed.png'} are in {out}.")
    for name in failed:
        console.print(f"[red]{name} failed[/]; its older figures, if any, are as they were")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
