"""Edits of prompts on a trained pipeline: ``python -m benchmarks.edits``.

The emoji model draws a picture, and a word of its prompt is changed. For each pair of prompts: the
mask that is found, how near the picture inside of it is to that of a dense run, its seam, and what
the whole edit takes beside a compiled dense run. Writes ``edits.json`` and ``edits.png`` under
``--out``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import torch
from rich.table import Table
from skimage.metrics import structural_similarity
from torch import Tensor

from benchmarks.machine import environment
from benchmarks.reuse_runs import Emoji, Settings, console, psnr, seconds
from benchmarks.speed_tables import plain_table
from examples.demo_plots import panel
from examples.emoji import net
from examples.emoji.pipeline import picture, pipeline, pixels
from examples.emoji.sample import GUIDANCE, noise
from sparsify import Editor, Schedule
from sparsify.editor import Result

PAIRS = (
    ("flat smiling face with open mouth", "flat smiling face with sunglasses"),
    ("flat smiling face", "flat smiling face with halo"),
    ("flat grinning face", "flat grinning face with tongue"),
    ("glossy cat face", "glossy cat face with tears of joy"),
    ("glossy smiling face", "glossy face with medical mask"),
    ("flat dog face", "flat fox face"),
    ("glossy woman", "glossy woman with red hair"),
    ("flat red apple", "flat green apple"),
)
"""Of recorded runs, and of edited ones."""


@dataclass(frozen=True)
class Options:
    """Edits find their masks from so many first steps (``after``); one by a schedule has so many
    ``calls``."""

    backend: str = "inductor"
    rounds: int = 3
    steps: int = 50
    after: tuple[int, ...] = (10, 3)
    dilate: int = 1
    calls: int = 17
    pairs: int = len(PAIRS)
    narrow: bool = False
    weights: str = "examples/emoji/weights"


QUICK = Options("eager", rounds=1, steps=10, after=(2,), calls=5, pairs=1, narrow=True)


class Runs:
    """The pipeline with an editor, and with a compiled dense model."""

    def __init__(self, options: Options) -> None:
        self.options = options
        own = Settings(options.backend, narrow=options.narrow, weights=options.weights)
        emoji = Emoji.of(own)
        words = emoji.text_encoder, emoji.tokenizer
        self._dense = pipeline(net.Model(emoji.dense(own), *words))
        pipe = pipeline(net.Model(emoji.unet, *words))
        self.editor = Editor(pipe, backend=options.backend, dilate=options.dilate)

    def dense(self, prompt: str) -> Tensor:
        return picture(self._dense(**self._call(prompt)))

    def first(self, prompt: str) -> Result:
        return self.editor(**self._call(prompt))

    def edited(self, first: Result, prompt: str, after: int, calls: int | None = None) -> Result:
        schedule = None if calls is None else self._schedule(after, calls)
        return self.editor.edit(first, prompt=prompt, after=after, schedule=schedule, keep=False)

    def _schedule(self, after: int, calls: int) -> Schedule:
        """The steps that find the mask, and as many later ones as there are ``calls``, all as far
        apart, but for the first: forecasts up to it are from steps side by side."""
        steps, rest = self.options.steps, calls - after
        first = after - 1 + (steps - after) // rest
        gap = (steps - 1 - first) / max(rest - 1, 1)
        later = (first + round(i * gap) for i in range(rest))
        return Schedule.at({*range(after), *later}, steps, order=1)

    def _call(self, prompt: str) -> dict[str, Any]:
        return {
            "prompt": prompt,
            "latents": noise(1, 1),
            "num_inference_steps": self.options.steps,
            "guidance_scale": GUIDANCE,
            "output_type": "pt",
        }


def compared(runs: Runs, old: str, new: str, after: int, calls: int | None) -> dict[str, Any]:
    """What one edit gives and costs."""
    first, want = runs.first(old), runs.dense(new)
    result = runs.edited(first, new, after, calls)
    assert result.mask is not None and result.reports is not None
    before, got, report = picture(first.output), picture(result.output), result.reports["unet"]
    mask = pixels(result.mask)
    times = seconds(
        {"dense": lambda: runs.dense(new), "edit": lambda: runs.edited(first, new, after, calls)},
        runs.options.rounds,
    )
    speedup = times["dense"]["median_s"] / times["edit"]["median_s"]
    return {
        "old": old,
        "new": new,
        "after": after,
        "calls": calls or runs.options.steps,
        "mask": float(mask.float().mean()),
        "psnr": psnr(got, want, mask)["psnr"],
        "ssim": _ssim(got, want, mask),
        "psnr_of_recorded": psnr(before, want, mask)["psnr"],
        "is_recorded_outside": torch.equal(got[..., ~mask], before[..., ~mask]),
        "seam": _seam(got, mask) / max(_seam(want, mask), 1e-6),
        "macs_share": report.share_left,
        "times": times,
        "speedup": speedup,
        "of_bound": speedup * report.share_left,
    }


def _ssim(got: Tensor, want: Tensor, mask: Tensor) -> float:
    pictures = (own[0].permute(1, 2, 0).numpy() for own in (got, want))
    _, each = structural_similarity(*pictures, data_range=1, channel_axis=2, full=True)
    return float(torch.from_numpy(each).mean(-1)[mask].mean())


def _seam(image: Tensor, mask: Tensor) -> float:
    """The mean step of a picture across the border of a mask."""
    across = mask[:, 1:] != mask[:, :-1], mask[1:] != mask[:-1]
    steps = image.diff(dim=-1).abs().mean((0, 1)), image.diff(dim=-2).abs().mean((0, 1))
    crossed = torch.cat([own[where] for own, where in zip(steps, across, strict=True)])
    return float(crossed.mean()) if len(crossed) else 0.0


def table(result: dict[str, Any]) -> Table:
    made = plain_table(
        "edit", "mask", "PSNR\nin, dB", "SSIM\nin", "recorded\ndB", "seam", "MACs", "speed\nup",
        "of\nbound",
    )  # fmt: skip
    made.title = "edits of prompts; inside their masks against dense runs"
    for row in (*result["rows"], *result["medians"]):
        by = f", {row['calls']} calls" if row["calls"] < result["options"]["steps"] else ""
        made.add_row(
            f"{_words(row)} (k = {row['after']}{by})",
            f"{row['mask']:.2f}",
            f"{row['psnr']:.1f}",
            f"{row['ssim']:.3f}",
            f"{row['psnr_of_recorded']:.1f}",
            f"{row['seam']:.2f}",
            f"{row['macs_share']:.2f}",
            f"{row['speedup']:.2f}x",
            f"{row['of_bound']:.2f}",
        )
    return made


def _words(row: dict[str, Any]) -> str:
    """Of the new prompt, those that the old one has not."""
    known = row.get("old", "").split()
    return " ".join(word for word in row["new"].split() if word not in known)


NUMBERS = "mask", "psnr", "ssim", "psnr_of_recorded", "seam", "macs_share", "speedup", "of_bound"


def _medians(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the pairs, for each way of editing."""
    made = []
    for after, calls in dict.fromkeys((row["after"], row["calls"]) for row in rows):
        own = [row for row in rows if (row["after"], row["calls"]) == (after, calls)]
        middle = {name: statistics.median(row[name] for row in own) for name in NUMBERS}
        made.append({"new": "median", "after": after, "calls": calls, **middle})
    return made


def _shown(runs: Runs, path: Path) -> None:
    pairs = PAIRS[: runs.options.pairs]
    firsts = [runs.first(old) for old, _ in pairs]
    after = runs.options.after[0]
    edits = [runs.edited(own, new, after) for own, (_, new) in zip(firsts, pairs, strict=True)]
    masks = [pixels(own.mask).float().expand(3, -1, -1) for own in edits if own.mask is not None]
    rows = {
        "recorded": torch.cat([picture(own.output) for own in firsts]),
        "dense": torch.cat([runs.dense(new) for _, new in pairs]),
        "edited": torch.cat([picture(own.output) for own in edits]),
        "mask": torch.stack(masks),
    }
    panel(rows, [new for _, new in pairs], path)


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tiny network, nothing compiled")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--weights", default=Options().weights)
    parser.add_argument("--out", type=Path, help="docs/benchmarks; quick: build/benchmarks")
    given = parser.parse_args(arguments)
    base = QUICK if given.quick else Options()
    options = replace(base, rounds=given.rounds or base.rounds, weights=given.weights)
    out = given.out or Path("build" if given.quick else "docs") / "benchmarks"
    out.mkdir(parents=True, exist_ok=True)
    about = {
        "environment": {**environment(), "diffusers": diffusers.__version__},
        "options": asdict(options),
    }
    runs, rows = Runs(options), list[dict[str, Any]]()
    ways = [(after, None) for after in options.after] + [(options.after[0], options.calls)]
    for old, new in PAIRS[: options.pairs]:
        for after, calls in ways:
            console.log(f"{old} -> {new}, k = {after}")
            rows.append(compared(runs, old, new, after, calls))
            result = {**about, "rows": rows, "medians": _medians(rows)}
            (out / "edits.json").write_text(json.dumps(result, indent=1) + "\n")
    _shown(runs, out / "edits.png")
    console.print(table(result), "")
    return 0


if __name__ == "__main__":
    sys.exit(main())
