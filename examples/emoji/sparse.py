"""Makes the emoji model's weights sparse: ``python -m examples.emoji.sparse``, minutes on one core.

The dense model teaches, on calls of its own samples: no data is needed. The UNet is then written
with its dense weights, from which any pattern can be taken, and a picture of samples: dense, sparse
without training, sparse with training, from top to bottom.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils import parametrize

from examples.fine_tuning import error, fine_tune
from sparsify import SparseWeights
from sparsify.weights import own_samples, teacher_of

from . import net
from .sample import denoised, noise, sample

SHOWN = ("glossy cat face", "flat red heart", "glossy rocket", "flat tree")
PICTURES, STEPS = 4, 20
"""Of a run that calls are taken from."""
RATE = 1e-4


def sampler(model: net.Model, seed: int) -> Callable[[nn.Module], Any]:
    """What samples pictures of drawn words with a UNet, others each time."""
    words = sorted(word for word in model.tokenizer.get_vocab() if word.isalpha())
    drawn = random.Random(seed)

    def run(unet: nn.Module) -> Tensor:
        styles = [drawn.choice(("flat", "glossy")) for _ in range(PICTURES)]
        prompts = [" ".join([style, *drawn.sample(words, 2)]) for style in styles]
        latents = noise(PICTURES, drawn.randrange(2**31))
        return denoised(model._replace(unet=unet), prompts, latents, STEPS)

    return run


def main(
    steps: Annotated[int, typer.Option(help="Of training.")] = 300,
    n: Annotated[int, typer.Option(help="Inputs kept ...")] = 2,
    m: Annotated[int, typer.Option(help="... of so many.")] = 4,
    v: Annotated[int, typer.Option(help="Outputs that share the choice.")] = 1,
    out: Annotated[Path, typer.Option(help="For the UNet and samples.")] = Path("build/sparse"),
) -> None:
    torch.manual_seed(0)
    out.mkdir(parents=True, exist_ok=True)
    model = net.load()
    pictures = [sample(model, SHOWN, steps=25)]
    weights = SparseWeights(model.unet, n, m, v)
    print(weights)
    teacher = teacher_of(weights)
    unseen = list(islice(own_samples(teacher, sampler(model, seed=1)), STEPS))
    print(f"relative squared error without training: {error(model.unet, unseen):.4f}")
    pictures.append(shown(model))
    fine_tune(weights, teacher, sampler(model, seed=2), steps, RATE)
    print(f"relative squared error after {steps} steps: {error(model.unet, unseen):.4f}")
    pictures.append(shown(model))
    rows = [torch.cat(list(row), 1) for row in pictures]
    Image.fromarray(torch.cat(rows, 0).numpy()).save(out / "samples.png")
    weights.remove()
    model.unet.save_pretrained(out / "unet")
    print(f"{out}: load the UNet, then SparseWeights(unet, {n}, {m}, {v})")


def shown(model: net.Model) -> Tensor:
    """uint8 [N, 64, 64, 3]"""
    with parametrize.cached():
        return sample(model, SHOWN, steps=25)


if __name__ == "__main__":
    typer.run(main)
