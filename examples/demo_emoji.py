"""The demo's emoji: a word of a prompt is changed, and a picture is painted on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline
from torch import Tensor

from examples.demo_plots import panel
from examples.emoji import net
from examples.emoji.pipeline import picture, pipeline, pixels
from examples.emoji.sample import GUIDANCE, noise
from examples.measurement import Measurement, Step, costs, psnr
from sparsify import Editor
from sparsify.editor import Result
from sparsify.timing import interleaved, medians

STEPS, ROUNDS = 50, 3
BEFORE, AFTER = "flat dog face", "flat fox face"
SPOT, STRENGTH = (20, 44, 6), 0.6
"""Row, column and radius of what is painted, and the share of the steps that follow it."""

CALL: dict[str, Any] = {
    "num_inference_steps": STEPS,
    "guidance_scale": GUIDANCE,
    "output_type": "pt",
}


@torch.no_grad()
def demo_emoji(out: Path, step: Step) -> list[Measurement]:
    """Edit one emoji by a word and by a brush, and write ``emoji.png``."""
    step("emoji: loading the network")
    model = net.load()
    dense, start = pipeline(model), {"latents": noise(1, 1), **CALL}
    step("emoji: recording the original, and editing it")
    editor = Editor(pipeline(model), dilate=1)
    first = editor(BEFORE, **start)
    painted = _painted(picture(first))

    def word(**options: Any) -> Result:
        return editor.edit(first, prompt=AFTER, **options)

    def brush(**options: Any) -> Result:
        return editor.edit(first, image=painted, strength=STRENGTH, **options)

    edits = {"another word": word, "a stroke": brush}
    everything = torch.ones(net.GRID)
    drawn = {"prompt": BEFORE, "image": painted, "strength": STRENGTH, **CALL}
    plain = {
        "another word": lambda: dense(AFTER, **start),
        "a stroke": _img2img(dense, drawn),
    }
    results = {name: (edit(), edit(mask=everything)) for name, edit in edits.items()}
    rows = {
        "before": [picture(first), painted],
        "dense": [picture(whole) for _, whole in results.values()],
        "edited": [picture(edit) for edit, _ in results.values()],
        "mask": [_mask(edit).float().expand(1, 3, -1, -1) for edit, _ in results.values()],
    }
    panel({name: torch.cat(own) for name, own in rows.items()}, list(results), out / "emoji.png")
    measurements = []
    for name, edit in edits.items():
        step(f"emoji: {name}, {ROUNDS} rounds")
        times = medians(interleaved({"dense": plain[name], "update": edit}, ROUNDS))
        measurements.append(_measurement(f"emoji, {name}", *results[name], times))
    return measurements


def _painted(before: Tensor) -> Tensor:
    row, column, radius = SPOT
    rows, columns = torch.meshgrid(*map(torch.arange, before.shape[-2:]), indexing="ij")
    inside = (rows - row).square() + (columns - column).square() < radius**2
    blue = torch.tensor([0.1, 0.25, 0.9]).view(1, 3, 1, 1)
    return torch.where(inside, blue, before)


def _img2img(pipe: Any, call: dict[str, Any]) -> Callable[[], Any]:
    """What a painter would run without an editor."""
    own = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    own.set_progress_bar_config(disable=True)
    return lambda: own(**call, generator=torch.Generator().manual_seed(0))


def _mask(edit: Result) -> Tensor:
    assert edit.mask is not None
    return pixels(edit.mask)


def _measurement(name: str, edit: Result, whole: Result, times: dict[str, float]) -> Measurement:
    mask, got, want = _mask(edit), picture(edit), picture(whole)
    assert edit.reports is not None
    report = edit.reports["unet"]
    return Measurement(
        network=name,
        policy="fixed",
        edit_fraction=float(mask.float().mean()),
        psnr_db=psnr(got, want, 1),
        psnr_inside_db=psnr(got, want, 1, mask),
        **costs(times, report.macs_dense, report.macs_now),
    )
