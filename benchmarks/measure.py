"""All figures of one network, in a process of its own: ``python -m benchmarks.measure``.

:mod:`benchmarks.speed` starts it. Each line that it prints names the next step.
"""

from __future__ import annotations

import json
import math
import resource
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.fx import GraphModule
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from benchmarks.floors import Rates, total, weight_bytes
from benchmarks.machine import environment, rates
from benchmarks.masks import MASKS
from benchmarks.networks import Network, full, small
from benchmarks.nodes import measure_nodes
from sparsify import Baseline, Plan, SparseModule, sparsify
from sparsify.program import Program
from sparsify.signature import bind
from sparsify.timing import interleaved, timed

SHARES = (0.012, 0.05, 0.15, 0.3, 0.6, 1.0)
Step = Callable[[str], None]
Run = Callable[[], Any]
Times = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """``backend`` "eager" compiles nothing; ``narrow`` networks have few channels; ``nodes`` is
    the share of the edit of which single nodes are timed. Compilations start without a cache,
    unless ``warm``."""

    backend: str = "inductor"
    rounds: int = 5
    narrow: bool = False
    warm: bool = False
    nodes: float | None = None

    @property
    def steps(self) -> int:
        """How many :func:`measure` names."""
        compiling, nodes = self.backend == "inductor", self.nodes is not None
        return 6 + self.rounds + 2 * compiling + nodes


def networks(narrow: bool) -> dict[str, Network]:
    """By name. The terrain's network is small, and always whole."""
    known = full()
    return small() | {"terrain": known["terrain"]} if narrow else known


@dataclass(frozen=True)
class Edit:
    """The first argument is new in this share of the sites."""

    share: float
    mask: str
    plan: Plan
    args: tuple[Any, ...]
    macs: int

    @property
    def name(self) -> str:
        return f"{self.share} {self.mask}"


@dataclass
class Prepared:
    """A network, dense and rewritten, and everything that is to be timed, by name."""

    model: nn.Module
    weights: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sparse: SparseModule
    baseline: Baseline
    edits: list[Edit]
    variants: dict[str, Run] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """Of what is done once."""

    @property
    def program(self) -> Program:
        return self.sparse._engine.program_of(self.baseline)

    def graph_run(self, edit: Edit) -> tuple[GraphModule, tuple[Any, ...]]:
        """The graph that computes an edit, and its inputs."""
        program = self.program
        call = bind(self.model, edit.args, self.kwargs).like(self.baseline.signature)
        tables = program.plan(edit.plan)
        part = program.graphs["dense" if tables.is_dense else "update"]
        values = program.runtime.operands(self.baseline, call, tables.mask)
        part.module.recompile()
        return part.module, tuple(values[name] for name in part.inputs)

    def updated(self, edit: Edit, sparse: SparseModule, baseline: Baseline) -> Tensor:
        """The picture after an edit."""
        output = sparse.update(baseline, *edit.args, mask=edit.plan, **self.kwargs)
        picture: Tensor = tree_leaves(output)[0]
        return picture


def prepare(network: Network, settings: Settings, step: Step) -> Prepared:
    """Builds, records and compiles."""
    step("building the network")
    torch.manual_seed(0)
    model, weights = _built(network)
    args, kwargs = network.inputs()
    step("capturing and rewriting")
    sparse = sparsify(model, dilate=network.dilate, backend=settings.backend)
    captured, _ = timed(lambda: sparse.graphs(*args, **kwargs))
    _, baseline = sparse.record(*args, **kwargs)
    edits = _edits(sparse, baseline, args)
    result = Prepared(model, weights, args, kwargs, sparse, baseline, edits)
    result.seconds["capture_and_rewrite"] = captured / 1e3
    result.variants["dense eager"] = lambda: model(*args, **kwargs)
    result.variants["record"] = lambda: sparse.record(*args, **kwargs)
    for edit in edits:
        _add_update(result, edit, settings)
    if settings.backend == "inductor":
        _compile(result, step)
    return result


def _built(network: Network) -> tuple[nn.Module, str]:
    """The network, and what its weights are."""
    if network.trained is not None:
        try:
            return network.trained().eval(), "trained"
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{network.name}: trained weights cannot be had: {error}", file=sys.stderr)
    return network.build().eval(), "random"


def _edits(sparse: SparseModule, baseline: Baseline, args: tuple[Any, ...]) -> list[Edit]:
    edits = []
    for share in SHARES:
        for kind in MASKS if share < 1 else ("square",):
            mask = MASKS[kind](baseline.grid, share)
            plan = sparse.plan(mask)
            new = torch.where(mask, torch.randn_like(args[0]), args[0])
            edit = Edit(share, kind, plan, (new, *args[1:]), sparse.report().macs_update)
            edits.append(edit)
    return edits


def _add_update(to: Prepared, edit: Edit, settings: Settings) -> None:
    graph, inputs = to.graph_run(edit)
    to.variants[f"update eager {edit.name}"] = lambda: graph(*inputs)
    to.variants[f"plan {edit.name}"] = lambda: to.sparse.plan(edit.plan.mask)
    if settings.backend == "inductor":
        to.variants[f"update compiled {edit.name}"] = lambda: to.sparse.update(
            to.baseline, *edit.args, mask=edit.plan, **to.kwargs
        )


def _compile(to: Prepared, step: Step) -> None:
    """The dense model with its weights frozen, and the update."""
    step("compiling the dense model")
    compiled = torch.compile(to.model)
    to.variants["dense compiled"] = lambda: compiled(*to.args, **to.kwargs)
    with inductor.patch(freezing=True):
        to.seconds["dense_compile"] = timed(to.variants["dense compiled"])[0] / 1e3
    step("compiling the update")
    first = to.variants[f"update compiled {to.edits[0].name}"]
    to.seconds["update_compile"] = timed(first)[0] / 1e3


def measure(network: Network, settings: Settings, step: Step) -> dict[str, Any]:
    """Everything that the JSON says of one network."""
    step("measuring the machine")
    machine = rates()
    prepared = prepare(network, settings, step)
    times = _taking_turns(prepared.variants, settings.rounds, step)
    step("measuring memory")
    runs = {name: run for name, run in prepared.variants.items() if not name.startswith("plan")}
    peaks = {name: peak_mib(run) for name, run in runs.items()}
    macs, baseline = prepared.sparse.report().macs_dense, prepared.baseline
    dense = [times[name]["median_ms"] for name in times if name.startswith("dense")]
    speed = Rates(macs / min(dense) * 1e3, machine["read_bytes_s"])
    result = {
        "network": network.name,
        "weights": prepared.weights,
        "parameters": sum(p.numel() for p in prepared.model.parameters()),
        "dilate": network.dilate,
        "machine": {**machine, "dense_macs_s": speed.macs},
        "macs_dense": macs,
        "dense_eager": times["dense eager"],
        "dense_compiled": times.get("dense compiled"),
        "record": times["record"],
        "seconds": prepared.seconds,
        "baseline_mib": baseline.nbytes / 2**20,
        "narrow_baseline": _narrow(prepared, network),
        "update_weights_mib": weight_bytes(prepared.program.graphs["update"].module) / 2**20,
        "error_of_full_edit": _error(prepared),
        "peak_mib": {name: mib for name, mib in peaks.items() if not name.startswith("update")},
        "edits": [_row(prepared, edit, times, peaks, speed) for edit in prepared.edits],
    }
    if settings.nodes is not None:
        step("timing nodes")
        result["nodes"] = _nodes(prepared, settings, speed)
    result["peak_process_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return result


def _taking_turns(variants: dict[str, Run], rounds: int, step: Step) -> Times:
    """Medians and spread of all variants."""
    names = iter(["warming up", *(f"round {number + 1} of {rounds}" for number in range(rounds))])
    spent = interleaved({"": lambda: step(next(names)), **variants}, rounds)
    return {name: _summary(spent[name]) for name in variants}


def _summary(spent: list[float]) -> dict[str, float]:
    ordered = sorted(spent)
    median = statistics.median(ordered)
    return {"median_ms": median, "min_ms": ordered[0], "max_ms": ordered[-1]}


def peak_mib(run: Run) -> float:
    """Most memory that tensors made by ``run`` take at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0)) / 2**20


def _error(prepared: Prepared) -> float:
    """Of an update of all sites, against the dense run, relative to its largest magnitude."""
    edit = prepared.edits[-1]
    want = tree_leaves(prepared.model(*edit.args, **prepared.kwargs))[0]
    got = prepared.updated(edit, prepared.sparse, prepared.baseline)
    return float((got - want).abs().max() / want.abs().max())


def _narrow(prepared: Prepared, network: Network) -> dict[str, float]:
    """A baseline in half the memory: how much it changes the picture of a 5 % edit."""
    edit = next(edit for edit in prepared.edits if edit.share == 0.05)
    options = {"dilate": network.dilate, "backend": "eager", "baseline_dtype": torch.bfloat16}
    sparse = sparsify(prepared.model, **options)
    _, baseline = sparse.record(*prepared.args, **prepared.kwargs)
    got = prepared.updated(edit, sparse, baseline)
    want = prepared.updated(edit, prepared.sparse, prepared.baseline)
    error = float((got - want).square().mean().sqrt() / (want.max() - want.min()))
    return {"mib": baseline.nbytes / 2**20, "psnr_db": -20 * math.log10(max(error, 1e-10))}


def _row(
    prepared: Prepared, edit: Edit, times: Times, peaks: dict[str, float], speed: Rates
) -> dict[str, Any]:
    """An edit's times and their floor; speed-ups are against the compiled model, if there is
    one, and the floor is that of the compiled update, if there is one."""
    eager, compiled = (f"update {how} {edit.name}" for how in ("eager", "compiled"))
    best = times[compiled if compiled in times else eager]["median_ms"]
    dense = times["dense compiled" if compiled in times else "dense eager"]["median_ms"]
    tables = prepared.program.plan(edit.plan)
    weights = weight_bytes(prepared.program.graphs["update"].module)
    floor, by = speed.floor(edit.macs, weights + total(tables.tables.values()))
    return {
        "share": edit.share,
        "mask": edit.mask,
        "edited": float(edit.plan.mask.float().mean()),
        "macs": edit.macs,
        "mac_bound": prepared.sparse.report().macs_dense / edit.macs,
        "update_eager": times[eager],
        "update_compiled": times.get(compiled),
        "plan": times[f"plan {edit.name}"],
        "speedup": dense / best,
        "speedup_eager": dense / times[eager]["median_ms"],
        "is_dense": tables.is_dense,
        "restricted_mib": prepared.sparse.restrict(prepared.baseline, edit.plan).nbytes / 2**20,
        "tables_mib": total(tables.tables.values()) / 2**20,
        "floor_ms": floor * 1e3,
        "floor_by": by,
        "over_floor": best / (floor * 1e3),
        "peak_mib": {name: peaks[name] for name in (eager, compiled) if name in peaks},
    }


def _nodes(prepared: Prepared, settings: Settings, speed: Rates) -> list[dict[str, Any]]:
    """Of the centred square nearest to the share that was asked for."""
    assert settings.nodes is not None
    share = min(SHARES, key=lambda known: abs(known - (settings.nodes or 0)))
    edit = next(edit for edit in prepared.edits if edit.share == share)
    return measure_nodes(*prepared.graph_run(edit), speed, settings.rounds)


def main() -> None:
    """``NAME SETTINGS FILE``: the settings as JSON, and the file to write."""
    name, given, path = sys.argv[1:]
    settings = Settings(**json.loads(given))
    torch.set_grad_enabled(False)
    network = networks(settings.narrow)[name]
    result = measure(network, settings, lambda text: print(text, flush=True))
    made = {"environment": environment(), "options": asdict(settings), **result}
    Path(path).write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
