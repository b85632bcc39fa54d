"""Samples the emoji model: ``python -m examples.emoji.sample "glossy rocket" "flat cat face"``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from PIL import Image
from torch import Tensor

from sparsify import Schedule, sparsify

from . import net


@torch.no_grad()
def sample(
    model: net.Model,
    prompts: Sequence[str],
    steps: int = 50,
    guidance: float = 3.0,
    seed: int = 0,
) -> Tensor:
    """uint8 [N, 64, 64, 3]: DDIM, with guidance as one batch of two."""
    scheduler = net.scheduler()
    scheduler.set_timesteps(steps)
    made = torch.Generator().manual_seed(seed)
    latents = torch.randn(len(prompts), 12, 32, 32, generator=made)
    tokens = net.tokens(model.tokenizer, [""] * len(prompts) + list(prompts))
    words = model.text_encoder(tokens).last_hidden_state
    for t in scheduler.timesteps:
        free, bound = model.unet(torch.cat([latents, latents]), t, words).sample.chunk(2)
        latents = scheduler.step(free + guidance * (bound - free), t, latents).prev_sample
    return net.to_pixels(latents)


def main(
    prompts: Annotated[list[str], typer.Argument(help='Such as "glossy red apple".')],
    out: Annotated[Path, typer.Option(help="A PNG.")] = Path("emoji.png"),
    calls: Annotated[int, typer.Option(help="Of 50 steps, those that call the model.")] = 50,
    seed: int = 0,
) -> None:
    model = net.load()
    sparse = model._replace(unet=sparsify(model.unet, backend="eager"))
    schedule = Schedule.every(1, 50)
    if calls < schedule.steps:
        schedule = sparse.unet.calibrate(
            lambda: sample(sparse, ["glossy cat face", "flat red heart"], seed=seed + 1),
            calls=calls,
        )
    with sparse.unet.sampling(schedule):
        pictures = sample(sparse, prompts, seed=seed)
    print(schedule)
    Image.fromarray(torch.cat(list(pictures), 1).numpy()).resize(
        (256 * len(prompts), 256), Image.Resampling.LANCZOS
    ).save(out)


if __name__ == "__main__":
    typer.run(main)
