"""Samples the emoji model: ``python -m examples.emoji.sample "glossy rocket" "flat cat face"``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from torch import Tensor

from sparsify import Schedule, sparsify

from . import net

GUIDANCE = 3.0


def noise(count: int, seed: int) -> Tensor:
    """float [count, 12, 32, 32]"""
    made = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3 * net.PATCH**2, *net.GRID, generator=made)


@torch.no_grad()
def denoised(
    model: net.Model, prompts: Sequence[str], latents: Tensor, steps: int, scheduler: Any = None
) -> Tensor:
    """The latents of pictures, from noise: DDIM, or another scheduler; guidance is a batch of
    two."""
    scheduler = scheduler or net.scheduler()
    scheduler.set_timesteps(steps)
    tokens = net.tokens(model.tokenizer, [""] * len(prompts) + list(prompts))
    words = model.text_encoder(tokens).last_hidden_state
    for t in scheduler.timesteps:
        free, bound = model.unet(torch.cat([latents, latents]), t, words).sample.chunk(2)
        velocity = free + GUIDANCE * (bound - free)
        latents = scheduler.step(velocity, t, latents).prev_sample
    return latents


def sample(model: net.Model, prompts: Sequence[str], steps: int = 50, seed: int = 0) -> Tensor:
    """uint8 [N, 64, 64, 3]"""
    return net.to_pixels(denoised(model, prompts, noise(len(prompts), seed), steps))


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
