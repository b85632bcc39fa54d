"""What steps of a sampling run may take over from others: ``python -m benchmarks.reuse NAME ...``.

Each part is written to ``docs/benchmarks/reuse-NAME.json`` as soon as it is measured:

- quality: how far pictures of runs by a schedule are from those of the full run, for prompts and
  noise that calibration did not see; ``reuse-quality.png`` shows some.
- time: seconds of a whole run by a schedule, and of the full one.
- propagation: encoder propagation in networks of real size, from single steps.
- space: an edit by a mask, by a schedule, and by both.

All but propagation run the emoji model, which ``python -m examples.emoji.train`` trains.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DPMSolverMultistepScheduler
from torch import Tensor

from benchmarks.machine import environment
from benchmarks.reuse_propagation import STEPS, networks, propagated
from benchmarks.reuse_runs import (
    EDITS,
    OF_OUTPUT,
    PROMPTS,
    SEEN,
    Emoji,
    Settings,
    Times,
    Work,
    console,
    psnr,
    seconds,
)
from benchmarks.reuse_tables import TABLES
from examples.demo_plots import panel
from examples.emoji import net
from examples.emoji.sample import noise
from sparsify import Schedule, Session, SparseModule, sparsify
from sparsify.masks import centred_square

DECIBELS = 40.0
EDITED = 0.05
QUICK = Settings(
    "eager", rounds=2, steps=20, calls=(7, 4, 3), few=4, prompts=2, seeds=(1,), edits=1, narrow=True
)
Results = Iterator[dict[str, Any]]
"""What is known so far, each time that it is more."""


def quality(settings: Settings, out: Path) -> Results:
    """Uncompiled: that makes no difference here."""
    emoji, steps, prompts = Emoji.of(settings), settings.steps, PROMPTS[: settings.prompts]
    sparse = sparsify(emoji.unet, backend="eager")

    starts = [noise(len(prompts), seed) for seed in settings.seeds]

    def sampled(model: Any, steps: int, scheduler: Any = None) -> Tensor:
        return torch.cat([emoji.sample(model, prompts, x, steps, scheduler) for x in starts])

    want, rows = sampled(emoji.unet, steps), list[dict[str, Any]]()
    shown = {"full run": want}
    for method, schedule in _schedules(emoji, settings):
        console.log(f"{method}: {schedule}")
        with sparse.sampling(schedule):
            got = sampled(sparse, steps)
        calls = len(schedule.keys)
        share = _work(sparse, schedule).share(schedule)
        row = {"method": method, "calls": calls, "macs_share": share, **psnr(got, want)}
        rows.append({**row, "psnr_of_calibration": schedule.psnr, "keys": schedule.keys})
        if method == "calibrated":
            shown[f"{calls} calls"] = got
    for calls in settings.calls:
        solver = DPMSolverMultistepScheduler.from_config(net.scheduler().config)
        got = sampled(emoji.unet, calls, solver)
        row = {"method": "DPM-Solver++", "calls": calls, "macs_share": calls / steps}
        rows.append({**row, **psnr(got, want)})
        if calls == settings.few:
            shown[f"DPM-Solver++, {calls}"] = got
    first = {name: pictures[: len(prompts)] for name, pictures in shown.items()}
    panel(first, prompts, out / "reuse-quality.png")
    yield {
        "steps": steps,
        "prompts": prompts,
        "calibrated_on": SEEN,
        "pictures": len(want),
        "rows": rows,
    }


def _schedules(emoji: Emoji, settings: Settings) -> Iterator[tuple[str, Schedule]]:
    steps = settings.steps
    for calls in settings.calls:
        yield "calibrated", emoji.calibrated(steps, calls=calls)
    yield f"calibrated, {DECIBELS:g} dB", emoji.calibrated(steps, psnr=DECIBELS)
    for order, method in enumerate(("equally spaced, held", "equally spaced, linear")):
        for calls in settings.calls:
            keys = (number * steps // calls for number in range(calls))
            yield method, Schedule.at(keys, steps, order)
    yield "encoder propagation", Schedule.published("faster-diffusion", steps)
    yield "DeepCache", Schedule.published("deepcache", steps, branch=0, interval=5)


def _work(sparse: SparseModule, schedule: Schedule) -> Work:
    """Of the run that was just made."""
    last = sparse._engine.last
    return OF_OUTPUT if schedule.part is None or last is None else Work.of(last[0])


def time(settings: Settings, out: Path) -> Results:
    """One picture, with the text encoder and the scheduler on both sides."""
    emoji, steps = Emoji.of(settings), settings.steps
    dense = emoji.dense(settings)
    sparse = sparsify(dense, backend=settings.backend)
    schedule, start = emoji.calibrated(steps, calls=settings.few), noise(1, 1)
    runs: dict[str, Callable[[], Tensor]] = {
        "full": lambda: emoji.sample(dense, PROMPTS[:1], start, steps),
        "schedule": lambda: emoji.by(schedule, sparse, PROMPTS[0], start),
    }
    times = seconds(runs, settings.rounds)
    yield {
        "steps": steps,
        "calls": settings.few,
        "keys": schedule.keys,
        "times": times,
        "share_of_calls": settings.few / steps,
        "share_of_time": times["schedule"]["median_s"] / times["full"]["median_s"],
        **psnr(runs["schedule"](), runs["full"]()),
    }


def propagation(settings: Settings, out: Path) -> Results:
    """Each network in a process of its own, which gives all its memory back."""
    rows, alone = list[dict[str, Any]](), get_context("spawn")
    for name in settings.networks:
        console.log(name)
        with ProcessPoolExecutor(1, alone, torch.set_grad_enabled, (False,)) as process:
            rows.append(process.submit(propagated, name, settings).result())
        yield {"steps": STEPS, "rows": rows}


@dataclass(frozen=True)
class _Edit:
    """Another prompt and other noise inside of a mask."""

    emoji: Emoji
    old: str
    new: str
    seed: int
    steps: int
    mask: Tensor

    @property
    def start(self) -> Tensor:
        """Of the edited run."""
        return torch.where(self.mask, noise(1, -self.seed), noise(1, self.seed))

    def recorded(self, sparse: SparseModule) -> tuple[Session, Tensor]:
        with sparse.recording() as session:
            picture = self.emoji.sample(sparse, [self.old], noise(1, self.seed), self.steps)
        return session, picture

    def edited(
        self, sparse: SparseModule, session: Session, schedule: Schedule | None = None
    ) -> Tensor:
        with session.editing(self.mask, schedule):
            return self.emoji.sample(sparse, [self.new], self.start, self.steps)


def space(settings: Settings, out: Path) -> Results:
    """Pictures are compared with a dense edited run that has what was recorded outside of the
    mask, as updates have; times are those of the last edit, against a dense run without a mask."""
    emoji, steps = Emoji.of(settings), settings.steps
    mask, schedule = centred_square(net.GRID, EDITED), emoji.calibrated(steps, calls=settings.few)
    sparse = sparsify(emoji.unet, backend=settings.backend)
    blended = sparsify(emoji.unet, backend="eager", dense_above=0.0)
    kinds = ("dense", "recorded", "space", "time", "both")
    made: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    pairs = EDITS[: settings.edits]
    edits = [_Edit(emoji, *pair, seed, steps, mask) for seed, pair in enumerate(pairs, 1)]
    for edit in edits:
        console.log(f"{edit.old} -> {edit.new}")
        (whole, before), (packed, _) = edit.recorded(blended), edit.recorded(sparse)
        made["recorded"].append(before)
        made["dense"].append(edit.edited(blended, whole))
        made["time"].append(edit.edited(blended, whole, schedule))
        made["space"].append(edit.edited(sparse, packed))
        made["both"].append(edit.edited(sparse, packed, schedule))
    report, want = sparse.report(), torch.cat(made.pop("dense"))
    inside = mask.repeat_interleave(net.PATCH, 0).repeat_interleave(net.PATCH, 1)
    errors = {name: psnr(torch.cat(pictures), want, inside) for name, pictures in made.items()}
    times = _times(edits[-1], sparse, packed, schedule, settings)
    few, left = settings.few / steps, report.share_left
    shares = {"dense": 1.0, "space": left, "time": few, "both": few * left}
    rows = [
        {
            "run": name,
            "macs": round(share * steps * report.macs_dense),
            "macs_share": share,
            "mac_bound": 1 / share,
            "time": times[name],
            "speedup": times["dense"]["median_s"] / times[name]["median_s"],
            **errors.get(name, {}),
        }
        for name, share in shares.items()
    ]
    yield {
        "steps": steps,
        "calls": settings.few,
        "keys": schedule.keys,
        "prompts": pairs,
        "edited": float(mask.float().mean()),
        "active": float(report.masks[net.GRID].float().mean()),
        "dilate": sparse.sparsify_config.dilation(net.GRID),
        "psnr_of_recorded": errors["recorded"]["psnr"],
        "recorded_mib": packed.nbytes / 2**20,
        "rows": rows,
    }


def _times(
    edit: _Edit, sparse: SparseModule, session: Session, schedule: Schedule, settings: Settings
) -> Times:
    dense = edit.emoji.dense(settings)
    by_time = sparsify(dense, backend=settings.backend)
    runs: dict[str, Callable[[], Tensor]] = {
        "dense": lambda: edit.emoji.sample(dense, [edit.new], edit.start, edit.steps),
        "space": lambda: edit.edited(sparse, session),
        "time": lambda: edit.emoji.by(schedule, by_time, edit.new, edit.start),
        "both": lambda: edit.edited(sparse, session, schedule),
    }
    return seconds(runs, settings.rounds)


PARTS: dict[str, Callable[[Settings, Path], Results]] = {
    "quality": quality,
    "time": time,
    "propagation": propagation,
    "space": space,
}


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=f"Parts: {', '.join(PARTS)}.")
    parser.add_argument("names", nargs="*", default=PARTS, metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="tiny networks, nothing compiled")
    parser.add_argument("--rounds", type=int, help=f"{Settings().rounds}; quick: {QUICK.rounds}")
    parser.add_argument("--weights", type=Path, default=Path(Settings().weights))
    parser.add_argument("--networks", nargs="+", default=Settings().networks, metavar="NETWORK")
    parser.add_argument("--out", type=Path, help="docs/benchmarks; quick: build/benchmarks")
    options = parser.parse_args(arguments)
    for given, known in ((options.names, PARTS), (options.networks, networks(narrow=True))):
        if unknown := set(given) - set(known):
            parser.error(f"{unknown.pop()} is not one of {', '.join(known)}")
    needs_weights = not options.quick and set(options.names) != {"propagation"}
    if needs_weights and not (options.weights / "unet").exists():
        parser.error(f"no weights in {options.weights}: python -m examples.emoji.train makes them")
    return options


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    options = parsed(arguments)
    base = QUICK if options.quick else Settings()
    settings = replace(
        base,
        rounds=options.rounds or base.rounds,
        weights=str(options.weights),
        networks=tuple(options.networks),
    )
    out = options.out or Path("build" if options.quick else "docs") / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "environment": {**environment(), "diffusers": diffusers.__version__},
        "options": asdict(settings),
    }
    for name in options.names:
        for part in PARTS[name](settings, out):
            result = {**about, **part}
            (out / f"reuse-{name}.json").write_text(json.dumps(result, indent=1) + "\n")
        console.print(TABLES[name](result), "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
