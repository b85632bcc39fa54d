"""Products with weights that keep N of each M inputs, shared by 16 outputs, against the same with
all inputs: ``python -m benchmarks.weights``, which writes ``docs/benchmarks/weights.json``. With
``--v 1`` each output keeps its own, and the file is ``weights_v1.json``. Without it the file is
``weights_sites.json`` where a CPU has such weights stored for sites along the lanes.

"gathered" is the 3x3 convolution of an update, "linear" a layer on rows, "whole" the 3x3
convolution of a square map in the dense graph, against the library's. ``OMP_NUM_THREADS`` chooses
how many threads compute.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table
from sparsify.codegen import products
from sparsify.codegen.nm import nm_masked
from sparsify.codegen.nm.pattern import NM
from sparsify.codegen.prepack import loads_bound, prepack_conv, prepack_linear
from torch import Tensor

from benchmarks.machine import environment
from benchmarks.reuse_runs import console, spread
from benchmarks.speed_tables import plain_table
from sparsify.timing import interleaved

SITES, CHANNELS = (16, 64, 256, 1024, 4096), (64, 128, 256, 320, 640, 1280)
KINDS = ("gathered", "linear", "whole")
TAPS = 9
MOST_MACS = 4096 * TAPS * 320 * 320
"""Of a product; larger ones take no other time for each."""


@dataclass(frozen=True)
class Case:
    kind: str
    sites: int
    channels: int

    @property
    def macs(self) -> int:
        return self.sites * self.channels**2 * (1 if self.kind == "linear" else TAPS)

    def variants(self, nm: NM) -> dict[str, Callable[[], Any]]:
        """The product with all inputs, and the same with those that are kept."""
        make = {"gathered": self._gathered, "linear": self._linear, "whole": self._whole}
        return make[self.kind](nm)

    def _gathered(self, nm: NM) -> dict[str, Callable[[], Any]]:
        weight, rows = self._weight(3), torch.randn(1, self.sites, self.channels)
        kernel_map = torch.randint(self.sites, (self.sites, TAPS))

        def run(weight: Tensor, format: str) -> Callable[[], Any]:
            stored = prepack_conv(weight, format=format)
            product = torch.ops.sparsify.gather_matmul
            return lambda: product(rows, kernel_map, stored, None, format)

        return _both(run, weight, nm)

    def _linear(self, nm: NM) -> dict[str, Callable[[], Any]]:
        weight, x = self._weight(1).flatten(1), torch.randn(1, self.sites, self.channels)

        def run(weight: Tensor, format: str) -> Callable[[], Any]:
            stored = prepack_linear(weight, format=format)
            return lambda: products.linear(x, stored, None, format=format)

        return _both(run, weight, nm)

    def _whole(self, nm: NM) -> dict[str, Callable[[], Any]]:
        side = math.isqrt(self.sites)
        x = torch.randn(1, self.channels, side, side).contiguous(memory_format=torch.channels_last)
        weight = self._weight(3).contiguous(memory_format=torch.channels_last)
        format, window = format_of(nm), ((side, side), (side, side), (3, 3), (1, 1), (1, 1), (1, 1))
        stored = prepack_conv(nm_masked(weight, *nm), format=format)
        return {
            "dense": lambda: F.conv2d(x, weight, None, 1, 1),
            "sparse": lambda: products.whole_conv(x, stored, None, window, format=format),
        }

    def _weight(self, side: int) -> Tensor:
        return torch.randn(self.channels, self.channels, side, side)


def format_of(nm: NM) -> str:
    """In which weights are stored here of which 16 outputs, or each, keep inputs of their own."""
    sites = "sites " if nm.v > 1 and loads_bound() else ""
    return f"{sites}{nm.v}:{nm.n}:{nm.m}"


def file_of(nm: NM) -> str:
    """What is written for such weights here."""
    if nm.v == 1:
        return "weights_v1.json"
    return "weights_sites.json" if format_of(nm).startswith("sites") else "weights.json"


def _both(
    run: Callable[[Tensor, str], Callable[[], Any]], weight: Tensor, nm: NM
) -> dict[str, Callable[[], Any]]:
    return {
        "dense": run(weight, "panels"),
        "sparse": run(nm_masked(weight, *nm), format_of(nm)),
    }


def cases(channels: Sequence[int]) -> Iterator[Case]:
    for kind in KINDS:
        for width in channels:
            for sites in SITES:
                if (case := Case(kind, sites, width)).macs <= MOST_MACS:
                    yield case


def measured(case: Case, nm: NM, rounds: int) -> dict[str, Any]:
    """Small products are timed more often. The speed-up is the median of those of all rounds."""
    torch.manual_seed(0)
    often = max(rounds, min(20 * rounds, 10**9 // case.macs))
    spent = interleaved(case.variants(nm), often, warm_up=2)
    pairs = zip(spent["dense"], spent["sparse"], strict=True)
    return {
        "kind": case.kind,
        "sites": case.sites,
        "channels": case.channels,
        "times": {name: spread(times) for name, times in spent.items()},
        "speedup": statistics.median(dense / sparse for dense, sparse in pairs),
    }


def table(result: dict[str, Any]) -> Table:
    made = plain_table("run", "channels", *(f"{sites}\nsites" for sites in SITES))
    made.title = f"speed-up of {result['format']}"
    found = {(r["kind"], r["channels"], r["sites"]): r["speedup"] for r in result["products"]}
    for kind, channels in dict.fromkeys((kind, channels) for kind, channels, _ in found):
        row = (found.get((kind, channels, sites)) for sites in SITES)
        made.add_row(kind, str(channels), *("" if own is None else f"{own:.2f}" for own in row))
    return made


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="the narrowest products")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--n", type=int, default=2)
    parser.add_argument("--m", type=int, default=4)
    parser.add_argument("--v", type=int, default=16, choices=(16, 1), help="outputs that share")
    parser.add_argument("--out", type=Path, help="docs/benchmarks; quick: build/benchmarks")
    return parser.parse_args(arguments)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    given = parsed(arguments)
    out = given.out or Path("build/benchmarks" if given.quick else "docs/benchmarks")
    nm, found = NM.of(given.n, given.m, given.v), []
    for case in cases(CHANNELS[:1] if given.quick else CHANNELS):
        found.append(measured(case, nm, given.rounds))
        console.log(f"{case.kind}, {case.sites} x {case.channels}: {found[-1]['speedup']:.2f}")
    result = {
        "environment": environment(),
        "format": format_of(nm),
        "rounds": given.rounds,
        "products": found,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / file_of(nm)).write_text(json.dumps(result, indent=1) + "\n")
    console.print(table(result))


if __name__ == "__main__":
    main()
