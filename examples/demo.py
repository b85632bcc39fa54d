"""The demo: edits of an emoji, a generated terrain and a photograph, dense against update.

    python -m examples.demo [--out demo_out]

Writes ``emoji.png``, ``panel.png`` (terrain), ``superres.png`` (photograph) and ``summary.json``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor

from examples.demo_emoji import demo_emoji
from examples.demo_plots import Edit, superres_panel, terrain_panel
from examples.measurement import Measurement, Step, costs, psnr
from examples.realesrgan import load_realesrgan
from examples.terrain import Network, denoise, generate, load_terrain
from sparsify import Session, SparseModule, difference_mask, sparsify
from sparsify.timing import interleaved, medians

SIGMAS = (1.0, 0.3)
"""Noise levels at which an edited terrain is refined."""

STROKES = ((0.01, 0.5, 6), (0.05, -0.5, 22), (0.15, 0.5, 3))
"""Share of the pixels, change of height (the range is -1..1) and seed of each stroke."""

ROUNDS, PHOTO_ROUNDS = 5, 3
PHOTO, SPOT = (40, 90, 192), (59, 79, 6)
"""Top, left and side of the crop of the photograph; row, column and radius of the retouch."""


def paint_stroke(height: Tensor, fraction: float, amount: float, seed: int) -> Tensor:
    """Return ``height [1, 1, H, W]`` (-1..1) raised by ``amount`` along a random smooth curve.

    The brush is soft, and as wide as it takes to change ``fraction`` of the pixels by more than
    the threshold of :func:`difference_mask`.
    """
    rows, columns = height.shape[-2:]
    length = 1.6 * math.sqrt(fraction * rows * columns)
    distance = _distance(_curve(length, (rows, columns), seed), (rows, columns))
    narrow, wide = 0.0, float(max(rows, columns))
    for _ in range(20):
        radius = (narrow + wide) / 2
        painted = _brushed(height, distance, radius, amount)
        share = float(difference_mask(height, painted).float().mean())
        narrow, wide = (radius, wide) if share < fraction else (narrow, radius)
    return _brushed(height, distance, wide, amount)


def _brushed(height: Tensor, distance: Tensor, radius: float, amount: float) -> Tensor:
    profile = (1 - (distance / radius).square()).clamp(min=0).square()
    return (height + amount * profile).clamp(-1, 1)


def _curve(length: float, size: tuple[int, int], seed: int) -> Tensor:
    """Return points ``[P, 2]`` (row, column), a pixel apart, of a gently turning curve."""
    generator = torch.Generator().manual_seed(seed)
    start, bend, twist, *place = torch.rand(5, generator=generator).tolist()
    along = torch.linspace(0, 1, max(int(length), 2))
    heading = 2 * math.pi * start + 3 * (bend - 0.5) * along + (2 * math.pi * (along + twist)).sin()
    points = torch.stack([heading.sin(), heading.cos()], dim=1).cumsum(dim=0)
    middle = (points.amin(0) + points.amax(0)) / 2
    free = (torch.tensor(size) - (points.amax(0) - points.amin(0))).clamp(min=0)
    centre = torch.tensor(size) / 2 + 0.5 * free * (torch.tensor(place) - 0.5)
    return points - middle + centre


def _distance(points: Tensor, size: Sequence[int]) -> Tensor:
    """Return the distance ``[H, W]`` in pixels of every pixel to the nearest point."""
    grid = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"), dim=-1)
    nearest = torch.cdist(grid.reshape(-1, 2).float(), points).amin(dim=1)
    return nearest.reshape(*size)


def retouch(photo: Tensor, spot: tuple[int, int, int]) -> Tensor:
    """Return ``photo [1, 3, H, W]`` (RGB, 0..1) with a catch-light at (row, column, radius)."""
    row, column, radius = spot
    distance = _distance(torch.tensor([[float(row), float(column)]]), photo.shape[-2:])
    alpha = (2 * (1 - distance / radius)).clamp(0, 1)
    return torch.lerp(photo, torch.tensor([0.96, 0.98, 1.0]).view(1, 3, 1, 1), alpha)


@torch.no_grad()
def refine(net: Network, height: Tensor, noises: Sequence[Tensor]) -> list[Tensor]:
    """Return the estimates ``[1, 1, H, W]`` after each step of :data:`SIGMAS`.

    Each step adds its noise, always the same, to the estimate before it and denoises the sum.
    """
    estimates = [height]
    for sigma, noise in zip(SIGMAS, noises, strict=True):
        estimates.append(denoise(net, estimates[-1] + sigma * noise, sigma))
    return estimates[1:]


def _edit_terrain(
    nets: tuple[Network, SparseModule],
    session: Session,
    before: Tensor,
    stroke: tuple[float, float, int],
    noises: Sequence[Tensor],
) -> tuple[Edit, Measurement]:
    """Paint one stroke on ``before [1, 1, H, W]`` and refine it dense and sparse."""
    net, sparse = nets
    after = paint_stroke(before, *stroke)
    mask = difference_mask(before, after)

    def update() -> list[Tensor]:
        with session.editing(mask):
            return refine(sparse, after, noises)

    dense, now = refine(net, after, noises), update()
    report = sparse.report()
    runs = {
        "dense": lambda: refine(net, after, noises),
        "update": update,
    }
    times = medians(interleaved(runs, ROUNDS, warm_up=0))
    measurement = Measurement(
        network="terrain UNet",
        policy=sparse.sparsify_config.policy,
        edit_fraction=float(mask.float().mean()),
        psnr_db=psnr(now[-1], dense[-1], 2),
        psnr_inside_db=psnr(now[-1], dense[-1], 2, mask),
        psnr_sigma1_db=psnr(now[0], dense[0], 2),
        psnr_sigma1_inside_db=psnr(now[0], dense[0], 2, mask),
        max_abs_difference=float((now[-1] - dense[-1]).abs().max()),
        **costs(times, report.macs_dense, report.macs_update),
    )
    return Edit(before, after, mask, dense[-1], now[-1], report.masks), measurement


def demo_terrain(out: Path, step: Step) -> list[Measurement]:
    """Edit one terrain with three strokes and write ``panel.png``."""
    step("terrain: fetching and loading the network")
    net = load_terrain()
    step("terrain: generating the original")
    before = generate(net, seed=4)
    generator = torch.Generator().manual_seed(1)
    noises = [torch.randn(before.shape, generator=generator) for _ in SIGMAS]
    step("terrain: capturing, rewriting and recording the original")
    sparse = sparsify(net)
    with sparse.recording() as session:
        refine(sparse, before, noises)
    edits, measurements = [], []
    for stroke in STROKES:
        step(f"terrain: stroke over {stroke[0]:.0%} of the pixels, {ROUNDS} rounds")
        edit, measurement = _edit_terrain((net, sparse), session, before, stroke, noises)
        edits.append(edit)
        measurements.append(measurement)
    terrain_panel(edits, measurements, out / "panel.png")
    return measurements


def _cat() -> Tensor:
    """Return a photograph ``[1, 3, 300, 451]``, RGB in 0..1."""
    import skimage.data

    load: Callable[[], npt.NDArray[np.uint8]] = skimage.data.chelsea
    return torch.from_numpy(load()).permute(2, 0, 1)[None].float() / 255


@torch.no_grad()
def demo_superres(out: Path, step: Step) -> Measurement:
    """Retouch a spot of a photograph, enlarge it four times and write ``superres.png``."""
    step("photograph: fetching and loading the network")
    net = load_realesrgan(name="realesrgan-x4plus-anime")
    top, left, side = PHOTO
    before = _cat()[..., top : top + side, left : left + side].contiguous()
    after = retouch(before, SPOT)
    mask = difference_mask(before, after, threshold=0)
    step("photograph: capturing, rewriting and recording the original")
    sparse = sparsify(net, policy="exact", backend="eager")
    _, baseline = sparse.record(before)
    step(f"photograph: dense and update, {PHOTO_ROUNDS} rounds")
    dense, now = net(after), sparse.update(baseline, after, mask=mask)
    report = sparse.report()
    runs = {
        "dense": lambda: net(after),
        "update": lambda: sparse.update(baseline, after, mask=mask),
    }
    inside = mask.repeat_interleave(4, 0).repeat_interleave(4, 1)
    times = medians(interleaved(runs, PHOTO_ROUNDS, warm_up=0))
    measurement = Measurement(
        network="Real-ESRGAN anime",
        policy="exact",
        edit_fraction=float(mask.float().mean()),
        psnr_db=psnr(now, dense, 1),
        psnr_inside_db=psnr(now, dense, 1, inside),
        max_abs_difference=float((now - dense).abs().max()),
        **costs(times, report.macs_dense, report.macs_update),
    )
    edit = Edit(before, after, mask, dense, now, report.masks)
    superres_panel(edit, measurement, out / "superres.png")
    return measurement


def write_summary(measurements: Sequence[Measurement], path: Path) -> None:
    """Write the measurements as a JSON list; an infinite PSNR (no difference) becomes null."""
    entries = [
        {k: None if v == math.inf else v for k, v in asdict(m).items()} for m in measurements
    ]
    path.write_text(json.dumps(entries, indent=2) + "\n")


def summary_table(measurements: Sequence[Measurement]) -> Table:
    """Return what the demo prints at its end; it fits into 80 columns."""
    table = Table(
        title="dense against update, medians of interleaved runs",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("edit", no_wrap=True)
    heads = (
        "dense\nms",
        "update\nms",
        "speed-up",
        "MACs",
        "PSNR\ndB",
        "inside\ndB",
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for m in measurements:
        times = (m.dense_ms, m.update_ms)
        table.add_row(
            f"{m.network}\n[dim]{m.policy}, {m.edit_fraction:.1%}[/]",
            *(f"{milliseconds:.0f}" for milliseconds in times),
            f"{m.speedup_vs_dense:.1f}x",
            f"1/{m.macs_dense / m.macs_update:.1f}",
            *(f"{decibel:.1f}" for decibel in (m.psnr_db, m.psnr_inside_db)),
        )
    table.caption = "nothing is compiled: make bench compares with compiled models; PSNR to dense"
    return table


@contextmanager
def _steps(console: Console, total: int) -> Iterator[Step]:
    """Show a spinner, a bar and the time; finished steps stay on the screen with their time."""
    columns = (SpinnerColumn(), BarColumn(bar_width=24), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.description}"), console=console) as progress:
        task = progress.add_task("starting", total=total)
        running: list[tuple[str, float]] = []

        def finish() -> None:
            if running:
                text, start = running.pop()
                progress.print(f"  [dim]{time.perf_counter() - start:6.1f} s[/]  {text}")
                progress.advance(task)

        def step(text: str) -> None:
            finish()
            running.append((text, time.perf_counter()))
            progress.update(task, description=text)

        yield step
        finish()
        progress.update(task, description="done")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all parts, write their files and print the table."""
    parser = argparse.ArgumentParser(description="Edit an emoji, a terrain and a photograph.")
    parser.add_argument("--out", type=Path, default=Path("demo_out"), help="folder to write to")
    out: Path = parser.parse_args(arguments).out
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.print(f"[bold]sparsify[/]: edits on {torch.get_num_threads()} CPU threads")
    if os.getloadavg()[0] > 1:
        console.print("[yellow]This machine is busy: times will be worse and vary more.[/]")
    with _steps(console, total=10 + len(STROKES)) as step:
        edits = demo_emoji(out, step), demo_terrain(out, step), [demo_superres(out, step)]
        measurements = list(chain(*edits))
    write_summary(measurements, out / "summary.json")
    console.print(summary_table(measurements))
    console.print(f"Pictures and numbers are in [bold]{out}[/].")


if __name__ == "__main__":
    main()
