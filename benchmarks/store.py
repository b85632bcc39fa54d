"""Edits of a run whose values lie on disk, against the same from memory: ``python -m
benchmarks.store``, which writes ``docs/benchmarks/store.json``.

Stable Diffusion 1.5 at its real size; weights are random, for a step takes as long with any. Every
call is recorded and written. The system keeps files in memory that it does not need, so that a run
of few calls is also measured after it was told to drop them: such an edit reads from the disk.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from benchmarks.machine import environment
from benchmarks.networks import full, small
from benchmarks.reuse_runs import Times, console, spread
from benchmarks.reuse_tables import cells
from benchmarks.speed_tables import plain_table
from sparsify import BaselineStore, Plan, Session, SparseModule, sparsify
from sparsify.masks import centred_square
from sparsify.timing import interleaved, timed

NETWORK = "stable-diffusion-1.5"
MIB, STATM = 2**20, Path("/proc/self/statm")
MEMORY, CACHED, READ = "in memory", "on disk, cached", "on disk"


@dataclass(frozen=True)
class Settings:
    """``backend`` "eager" compiles nothing; the ``narrow`` network is tiny. ``edited`` is the share
    of the sites."""

    backend: str = "inductor"
    rounds: int = 5
    steps: int = 10
    edited: float = 0.05
    narrow: bool = False
    folder: str = tempfile.gettempdir()


@dataclass(frozen=True)
class Run:
    """The calls of a sampling run, each at a timestep of its own."""

    sparse: SparseModule
    context: Tensor
    latents: Sequence[Tensor]
    mask: Plan

    @staticmethod
    def of(settings: Settings) -> Run:
        torch.manual_seed(0)
        network = (small if settings.narrow else full)()[NETWORK]
        sparse = sparsify(network.build().eval(), dilate=1, backend=settings.backend)
        (first, _, context), _ = network.inputs()
        latents = [torch.randn_like(first) for _ in range(settings.steps)]
        mask = centred_square((first.shape[-2], first.shape[-1]), settings.edited)
        return Run(sparse, context, latents, Plan(mask))

    def record(self, store: BaselineStore | None, calls: int) -> Session:
        with self.sparse.recording(store=store, calls=calls) as session:
            for step in range(calls):
                self.sparse(self.latents[step], self._time(step), self.context)
        return session

    def edit(self, session: Session) -> Tensor:
        """The last output."""
        with session.editing(self.mask):
            for step in range(len(session.calls)):
                new = torch.where(self.mask.mask, self.latents[step] + 1, self.latents[step])
                output = self.sparse(new, self._time(step), self.context)
        last: Tensor = output.sample
        return last

    def _time(self, step: int) -> Tensor:
        return torch.tensor(1000 - 1000 * step // len(self.latents))


def measured(settings: Settings) -> dict[str, Any]:
    run = Run.of(settings)
    console.log("compiling: a call, and its edit")
    model = _without_values(run)
    with BaselineStore(disk=None, folder=settings.folder) as store:
        console.log(f"recording {settings.steps} calls")
        recorded, session = timed(lambda: run.record(store, settings.steps))
        size = session.nbytes / settings.steps / MIB
        console.log("an edit, for its memory")
        with peak_mib() as peak:
            picture = run.edit(session)
        once = dict(store.fetches)
        reads = _reads(session, settings)
        in_memory = Session(
            session.module, [replace(one, values=one.fetched()) for one in session.calls]
        )
        is_equal = torch.equal(picture, run.edit(in_memory))
        times = _times(run, session, in_memory, settings)
    return {
        "network": NETWORK,
        "calls": settings.steps,
        "baseline_mib": size,
        "is_equal": is_equal,
        "fetches_of_one_edit": once,
        "record_s": recorded / 1e3,
        "resident_mib": {"model": model, "edit": peak[0]},
        "baselines_in_memory": (peak[0] - model) / size,
        "read_s": reads,
        "times": times,
    }


def _times(run: Run, session: Session, in_memory: Session, settings: Settings) -> Times:
    """Medians and spread of edits that take turns, and how much longer they take, in pairs."""
    variants: dict[str, Callable[[], Any]] = {
        MEMORY: lambda: run.edit(in_memory),
        CACHED: lambda: run.edit(session),
        "": lambda: dropped(Path(settings.folder)),
        READ: lambda: run.edit(session),
    }
    spent = interleaved(variants, settings.rounds, tell=console.log)
    return {
        name: spread(spent[name])
        | {
            "of_memory": statistics.median(
                own / other for own, other in zip(spent[name], spent[MEMORY], strict=True)
            ),
        }
        for name in (MEMORY, CACHED, READ)
    }


def _reads(session: Session, settings: Settings) -> dict[str, float]:
    """Seconds in which the values of one call are read and checked, with nothing else to do."""
    one = session.calls[-1]  # of which none is fetched ahead
    variants: dict[str, Callable[[], Any]] = {
        CACHED: one.fetched,
        "": lambda: dropped(Path(settings.folder)),
        READ: one.fetched,
    }
    spent = interleaved(variants, settings.rounds)
    return {name: statistics.median(spent[name]) / 1e3 for name in (CACHED, READ)}


def dropped(folder: Path) -> None:
    """Has the system drop what it keeps of the store's files."""
    os.sync()
    for path in folder.glob("sparsify-baselines-*/*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _without_values(run: Run) -> float:
    """The most that is resident in an edit of one call, without the values that it reads."""
    session = run.record(None, 1)
    run.edit(session)  # compiled
    with peak_mib() as peak:
        run.edit(session)
    return peak[0] - session.nbytes / MIB


@contextmanager
def peak_mib() -> Iterator[list[float]]:
    """The most that is resident in this process inside; free memory is given back before."""
    ctypes.CDLL(None).malloc_trim(0)
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.005):
            pages = int(STATM.read_text().split()[1])
            peak[0] = max(peak[0], pages * os.sysconf("SC_PAGE_SIZE") / MIB)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        over.set()
        thread.join()


def table(result: dict[str, Any]) -> Table:
    made = plain_table("run", "seconds", "+-", "of that\nin memory")
    made.title = (
        f"an edit of {result['options']['edited']:.0%}, {result['calls']} calls of "
        f"{result['baseline_mib']:.0f} MiB; from disk at most "
        f"{result['baselines_in_memory']:.2f} in memory"
    )
    for name, time in result["times"].items():
        made.add_row(name, *cells(time), f"{time['of_memory']:.3f}")
    return made


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Linux alone.")
    parser.add_argument("--quick", action="store_true", help="a tiny network, nothing compiled")
    parser.add_argument("--rounds", type=int, default=Settings().rounds)
    parser.add_argument("--steps", type=int, default=Settings().steps, help="calls on disk")
    parser.add_argument(
        "--edited", type=float, default=Settings().edited, help="share of the sites"
    )
    parser.add_argument("--folder", default=Settings().folder, help="where the store lies")
    parser.add_argument("--out", type=Path, help="docs/benchmarks; quick: build/benchmarks")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    settings = Settings(
        "eager" if options.quick else "inductor",
        options.rounds,
        options.steps,
        options.edited,
        options.quick,
        options.folder,
    )
    out = options.out or Path("build" if options.quick else "docs") / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    result = {
        "environment": environment(),
        "options": asdict(settings),
        **measured(settings),
    }
    (out / "store.json").write_text(json.dumps(result, indent=1) + "\n")
    console.print(table(result), "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
