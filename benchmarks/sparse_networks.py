"""Whole networks with weights that keep N of M inputs, shared by 16 outputs, against the same with
all weights: ``python -m benchmarks.sparse_networks``, which writes
``docs/benchmarks/sparse-networks.json``. Networks that are not named keep what is there.

Every layer that can have them has sparse weights. They are random, for a call takes as long with
any. Calls without an edit are timed, updates of a square, and edits of a whole run whose steps are
partly forecast. ``OMP_NUM_THREADS`` chooses how many threads compute.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.utils._pytree import tree_leaves

from benchmarks.machine import environment
from benchmarks.networks import Network, full, small
from benchmarks.reuse_runs import console, spread
from benchmarks.speed_tables import plain_table
from sparsify import Plan, Schedule, SparseModule, SparseWeights, sparsify
from sparsify.masks import centred_square
from sparsify.run_report import RunReport
from sparsify.signature import bind
from sparsify.timing import interleaved
from sparsify.weights import NM

NETWORKS = "ddpm-church-256", "stable-diffusion-1.5"
OF_RUNS = ("ddpm-church-256",)
"""Networks of which whole runs are timed too."""
DENSE, UPDATE, RUN = "call", "update", "run"
KEPT = ", sparse weights"
PATTERN = NM(2, 4, 16)


@dataclass(frozen=True)
class Settings:
    """``backend`` "eager" compiles nothing; ``narrow`` networks are tiny. ``edited`` is the share
    of the sites. A run has so many ``steps``, of which each ``every``-th calls the model."""

    backend: str = "inductor"
    rounds: int = 5
    edited: float = 0.05
    pattern: NM = PATTERN
    steps: int = 50
    every: int = 6
    narrow: bool = False

    @property
    def schedule(self) -> Schedule:
        return Schedule.every(self.every, self.steps, order=1)


@dataclass(frozen=True)
class Side:
    """A network, with all weights or with sparse ones."""

    sparse: SparseModule
    inputs: tuple[Any, ...]
    plan: Plan
    edited: Tensor

    @staticmethod
    def of(model: nn.Module, network: Network, settings: Settings) -> Side:
        torch.manual_seed(1)
        sparse = sparsify(model, dilate=network.dilate, backend=settings.backend)
        inputs, _ = network.inputs()
        first = inputs[0]
        mask = centred_square(first.shape[-2:], settings.edited)
        edited = torch.where(mask, torch.randn_like(first), first)
        return Side(sparse, inputs, Plan(mask), edited)

    def call(self) -> Callable[[], Any]:
        """Without an edit."""
        call = bind(self.sparse, self.inputs, {})
        program = self.sparse._engine.program(call)
        self.sparse.record(*self.inputs)  # constants are made
        own = call.like(program.signature)

        def run() -> Any:
            with program.as_captured():
                return program.runtime.dense(own)

        return run

    def update(self) -> Callable[[], Any]:
        _, baseline = self.sparse.record(*self.inputs)
        given = self.edited, *self.inputs[1:]
        return lambda: self.sparse.update(baseline, *given, mask=self.plan)

    def edit_run(self, settings: Settings) -> tuple[Callable[[], Any], Callable[[], RunReport]]:
        """The edit of a run, and what the last such edit computed."""
        with self.sparse.recording(settings.schedule) as session:
            self._sampled(settings, self.inputs[0])
        last: list[Any] = []

        def run() -> None:
            with session.editing(self.plan, settings.schedule) as editing:
                self._sampled(settings, self.edited)
            last[:] = [editing]

        return run, lambda: last[0].report()

    def _sampled(self, settings: Settings, latents: Tensor) -> None:
        """Steps along the model's output: what a sampler does beside that takes no time."""
        for step in range(settings.steps):
            time = torch.tensor(1000 - 1000 * step // settings.steps)
            output = self.sparse(latents, time, *self.inputs[2:])
            latents = latents - tree_leaves(output)[0] / settings.steps


def measured(network: Network, settings: Settings) -> dict[str, Any]:
    torch.manual_seed(0)
    model = network.build().eval()
    plain = Side.of(model, network, settings)
    kept = deepcopy(model, {id(p): p for p in model.parameters()})  # which both have
    weights = SparseWeights(kept, *settings.pattern)
    sparse = Side.of(kept, network, settings)
    console.log(f"{network.name}: {weights}, compiling")
    compiled = _compiled(model, settings)
    variants: dict[str, Callable[[], Any]] = {
        DENSE: lambda: compiled(*plain.inputs),
        DENSE + KEPT: sparse.call(),
        UPDATE: plain.update(),
        UPDATE + KEPT: sparse.update(),
    }
    variants[UPDATE + KEPT]()
    macs, shares = _macs(sparse.sparse), {}
    if network.name in OF_RUNS:
        variants[RUN], _ = plain.edit_run(settings)
        variants[RUN + KEPT], report = sparse.edit_run(settings)
        variants[RUN + KEPT]()
        shares = _shares(report())
    spent = interleaved(variants, settings.rounds, tell=console.log)
    return {
        "network": network.name,
        "layers": len(weights.layers),
        "refused": len(weights.refused),
        "macs": macs,
        "shares": shares,
        "times": {name: spread(times) for name, times in spent.items()},
        "speedups": _speedups(spent, settings),
    }


def _compiled(model: nn.Module, settings: Settings) -> Callable[..., Any]:
    """With its weights frozen, as the model is fastest."""
    dense = torch.compile(model, disable=settings.backend == "eager")

    def run(*args: Any) -> Any:
        with inductor.patch(freezing=True):
            return dense(*args)

    return run


def _macs(sparse: SparseModule) -> dict[str, float]:
    """Of a call with all weights, and the shares of it that are left of a call and an update with
    sparse ones."""
    report = sparse.report()
    whole = report.macs_dense
    return {
        "dense": whole,
        DENSE + KEPT: sum(node.macs_kept for node in report) / whole,
        UPDATE + KEPT: report.macs_update / whole,
    }


def _shares(report: RunReport) -> dict[str, float]:
    """Of a run's MACs, what each leaves alone, and all together."""
    dense = report.macs_dense
    left = {"space": report.macs_space, "time": report.macs_time, "weights": report.macs_weights}
    return {name: macs / dense for name, macs in {**left, "all": report.macs_now}.items()}


def _speedups(spent: dict[str, list[float]], settings: Settings) -> dict[str, float]:
    """Medians over rounds: of sparse weights against all weights, and of everything against
    compiled calls with all weights."""

    def ratio(slow: str, fast: str, times: int = 1) -> float:
        pairs = zip(spent[slow], spent[fast], strict=True)
        return statistics.median(times * a / b for a, b in pairs)

    kinds = [kind for kind in (DENSE, UPDATE, RUN) if kind in spent]
    found = {f"{kind} by weights": ratio(kind, kind + KEPT) for kind in kinds}
    for kind in kinds:
        calls = settings.steps if kind == RUN else 1
        for name in (kind, kind + KEPT):
            found[f"{name} against dense"] = ratio(DENSE, name, calls)
    return found


def table(results: Sequence[dict[str, Any]]) -> Table:
    made = plain_table("network", "what", "seconds", "sparse\nweights", "faster by\nweights", "all")
    made.title = "sparse weights in whole networks"
    for result in results:
        times, speedups = result["times"], result["speedups"]
        for kind in (DENSE, UPDATE, RUN):
            if kind in times:
                made.add_row(
                    result["network"],
                    kind,
                    f"{times[kind]['median_s']:.3f}",
                    f"{times[kind + KEPT]['median_s']:.3f}",
                    f"{speedups[f'{kind} by weights']:.2f}",
                    f"{speedups[f'{kind + KEPT} against dense']:.2f}",
                )
    return made


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*", default=NETWORKS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="narrow networks, nothing compiled")
    parser.add_argument("--rounds", type=int, default=Settings().rounds)
    parser.add_argument("--out", type=Path, help="docs/benchmarks; quick: build/benchmarks")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    given = parsed(arguments)
    out = given.out or Path("build/benchmarks" if given.quick else "docs/benchmarks")
    settings = Settings(rounds=given.rounds)
    if given.quick:
        settings = Settings("eager", given.rounds, narrow=True)
    known = small() if settings.narrow else full()
    out.mkdir(parents=True, exist_ok=True)
    path = out / "sparse-networks.json"
    results = {row["network"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    for name in given.names:
        about = {"environment": environment(), "options": asdict(settings)}
        results[name] = measured(known[name], settings) | about
        path.write_text(json.dumps(list(results.values()), indent=1) + "\n")
    console.print(table(list(results.values())))


if __name__ == "__main__":
    main()
