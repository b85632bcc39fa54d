"""What sparse weights cost two trained networks: ``python -m benchmarks.fidelity``.

For each network and pattern, without training and after some minutes of it, without data: the
squared error of the output on calls of samples that training did not see, relative to the dense
output; the PSNR of samples to the dense network's from the same noise; and the Fréchet distance
between features of both. Writes ``fidelity.json``, which keeps what it has of other networks, and a
picture of each under ``--out``. Samples lie under ``--samples``: what is there, by the same
settings, is not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrize

from benchmarks.fidelity_nets import NETS, Net
from benchmarks.frechet import Features, frechet
from benchmarks.machine import environment
from benchmarks.reuse_runs import console, psnr
from benchmarks.speed_tables import plain_table
from examples.demo_plots import panel
from examples.fine_tuning import error, fine_tune
from sparsify import SparseWeights
from sparsify.weights import NM, Batch, own_samples

PATTERNS = (
    (NM(2, 4), None),
    (NM(2, 4, 16), None),
    (NM(8, 16, 16), None),
    (NM(8, 16, 16), 0.6),
)
"""With the share of MACs that a search leaves, if layers that the pattern hurts most stay dense."""
UNSEEN, TRAINED, SEARCHED = 1, 2, 7
"""Seeds of the calls that errors are taken on, of those of training, and of a search's."""
SEARCH_CALLS = 6
"""That layers are compared on."""
SHOWN = 4
"""Samples of each network in the picture."""


@dataclass(frozen=True)
class Plan:
    """For one network: steps of training and their learning rate, calls that errors are taken on,
    and how many times it samples."""

    steps: int
    rate: float
    calls: int = 20
    rounds: int = 3
    narrow: bool = False

    @property
    def untrained(self) -> Plan:
        return replace(self, steps=0, rate=0.0)


PLANS = {"emoji": Plan(steps=150, rate=1e-4), "terrain": Plan(steps=100, rate=1e-4, rounds=5)}
QUICK = Plan(steps=3, rate=1e-3, calls=3, rounds=1, narrow=True)

Made = tuple[Tensor, dict[str, Any]]
"""Samples, and what else is known of them."""


class Runs:
    """One network's samples, dense and sparse, each made once."""

    def __init__(self, name: str, plan: Plan, folder: Path) -> None:
        self.name, self.plan, self._folder = name, plan, folder

    def dense(self, draw: int) -> Tensor:
        """The dense samples; those of another draw are from other noise."""

        def make() -> Made:
            return self._sampled(self.net.network, draw), {}

        return self._once(f"dense-{draw}", self.plan.untrained, make)[0]

    def sparse(self, pattern: NM, budget: float | None, plan: Plan) -> Made:
        """The samples from the noise of draw 0."""

        def make() -> Made:
            torch.manual_seed(0)
            network = deepcopy(self.net.network)
            weights = SparseWeights(network, *pattern)
            if budget is not None:
                calls = own_samples(self.net.network, self.net.run(SEARCHED), passes=1)
                weights.search(budget, list(islice(calls, SEARCH_CALLS)), choices=[pattern])
            start = time.process_time()
            if plan.steps:
                teacher, run = self.net.network, self.net.run(TRAINED)
                fine_tune(weights, teacher, run, plan.steps, plan.rate)
            known = {
                "minutes": (time.process_time() - start) / 60,
                "error": error(network, self._unseen),
                "layers": len(weights.layers),
            }
            return self._sampled(network, 0), known

        kept = _weights(pattern, budget).replace(":", "-").replace(" ", "-")
        return self._once(f"{kept}-{'trained' if plan.steps else 'untrained'}", plan, make)

    @cached_property
    def net(self) -> Net:
        return NETS[self.name](self.plan.narrow)

    @cached_property
    def _unseen(self) -> list[Batch]:
        calls = own_samples(self.net.network, self.net.run(UNSEEN), passes=1)
        return list(islice(calls, self.plan.calls))

    @torch.no_grad()
    def _sampled(self, network: nn.Module, draw: int) -> Tensor:
        rounds = self.plan.rounds
        seeds = range(draw * rounds, (draw + 1) * rounds)
        with parametrize.cached():
            return torch.cat([self.net.samples(network, seed) for seed in seeds])

    def _once(self, name: str, plan: Plan, make: Callable[[], Made]) -> Made:
        path, settings = self._folder / f"{self.name}-{name}.safetensors", json.dumps(asdict(plan))
        if path.exists():
            with safe_open(path, "pt") as file:
                about = file.metadata()
                if about["plan"] == settings:
                    return file.get_tensor("samples"), json.loads(about["known"])
        console.log(f"{self.name}, {name}")
        samples, known = make()
        self._folder.mkdir(parents=True, exist_ok=True)
        save_file({"samples": samples}, path, {"plan": settings, "known": json.dumps(known)})
        return samples, known


def rows(runs: Runs, features: Features) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """What is found of the dense network and of each pattern, with pictures of samples."""
    want = runs.dense(0)
    dense, other = runs.net.painted(want), runs.net.painted(runs.dense(1))
    of_dense, of_other = features(dense), features(other)
    about = {"samples": len(want)}
    floor = {"frechet": 0.0, "frechet_to_other_noise": frechet(of_dense, of_other)}
    yield {**about, "weights": "dense", **floor}, dense
    for pattern, budget in PATTERNS:
        for plan in (runs.plan.untrained, runs.plan):
            samples, known = runs.sparse(pattern, budget, plan)
            pictures = runs.net.painted(samples)
            found = features(pictures)
            row = {
                **about,
                "weights": _weights(pattern, budget),
                "steps": plan.steps,
                **known,
                "psnr": psnr(samples, want)["psnr"],
                "frechet": frechet(found, of_dense),
                "frechet_to_other_noise": frechet(found, of_other),
            }
            yield row, pictures


def table(result: dict[str, Any]) -> Table:
    made = plain_table(
        "network", "weights", "steps", "minutes", "squared\nerror", "PSNR\ndB", "Fréchet",
        "to other\nnoise",
    )  # fmt: skip
    made.title = "against the dense network"
    for name, own in result.items():
        for row in own["rows"]:
            made.add_row(
                name,
                row["weights"],
                str(row.get("steps", "")),
                f"{row['minutes']:.1f}" if row.get("steps") else "",
                f"{row['error']:.4f}" if "error" in row else "",
                f"{row['psnr']:.1f}" if "psnr" in row else "",
                f"{row['frechet']:.3g}",
                f"{row['frechet_to_other_noise']:.3g}",
            )
    return made


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", default=PLANS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="tiny networks, hardly trained")
    parser.add_argument("--out", type=Path, help="docs/benchmarks; quick: build/benchmarks")
    parser.add_argument("--samples", type=Path, help="build/fidelity; quick: under --out")
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(PLANS):
        parser.error(f"{unknown.pop()} is not one of {', '.join(PLANS)}")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    given = parsed(arguments)
    out = given.out or Path("build" if given.quick else "docs") / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    folder = given.samples or (out / "samples" if given.quick else Path("build/fidelity"))
    plans = {name: QUICK if given.quick else PLANS[name] for name in given.names}
    written, features = out / "fidelity.json", Features()
    result = json.loads(written.read_text()) if written.exists() else {}
    for name, plan in plans.items():
        runs, pictures = Runs(name, plan, folder), dict[str, Tensor]()
        found: list[dict[str, Any]] = []
        result[name] = {"environment": environment(), "plan": asdict(plan), "rows": found}
        for row, painted in rows(runs, features):
            found.append(row)
            pictures[_name(row)] = painted[:SHOWN]
            written.write_text(json.dumps(result, indent=1) + "\n")
        panel(pictures, runs.net.titles[:SHOWN], out / f"fidelity-{name}.png")
    console.print(table(result))
    return 0


def _weights(pattern: NM, budget: float | None) -> str:
    return str(pattern) if budget is None else f"{pattern} for {budget:g} of MACs"


def _name(row: dict[str, Any]) -> str:
    weights = str(row["weights"]).replace(" for ", "\nfor ")
    comma = ",\n" if "\n" in weights else ", "
    return f"{weights}{comma}trained" if row.get("steps") else weights


if __name__ == "__main__":
    sys.exit(main())
