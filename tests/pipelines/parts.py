"""What the tiny pipelines share: cases, arguments of calls, weights, and the commonest networks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

Pipe = Any  # diffusers' pipelines are not typed

SIZE: dict[str, Any] = {"height": 32, "width": 32}
GUIDED: dict[str, Any] = {"guidance_scale": 2.0}
NOISE: dict[str, Any] = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PADDED: dict[str, Any] = {
    "prompt_attention_mask": torch.tensor([[1, 1, 1, 0]]),
    "negative_prompt_attention_mask": torch.tensor([[1, 1, 0, 0]]),
}


@dataclass(frozen=True)
class Case:
    """A pipeline and the keyword arguments of a call, all but the generator."""

    build: Callable[[], Pipe]
    inputs: Callable[[], dict[str, Any]]
    changed: Callable[[], dict[str, Any]]
    """Those arguments that another prompt changes."""


def case(
    build: Callable[[], Pipe], *, pooled: bool = False, negative: bool = True, **options: Any
) -> Case:
    """Of four steps, with a ``pooled`` and a ``negative`` prompt if the pipeline has them."""

    def seeded() -> Pipe:
        torch.manual_seed(0)
        return build()

    def inputs() -> dict[str, Any]:
        prompts = prompt(1, pooled) | (prompt(2, pooled, "negative_") if negative else {})
        call = {"num_inference_steps": 4, "output_type": "pt"}
        return call | prompts | copy.deepcopy(options)

    return Case(seeded, inputs, lambda: prompt(3, pooled))


def prompt(seed: int, pooled: bool = False, prefix: str = "") -> dict[str, Tensor]:
    """What text encoders could make of a prompt."""
    embeds = {f"{prefix}prompt_embeds": normal(seed, 1, 4, 8)}
    return embeds | ({f"{prefix}pooled_prompt_embeds": normal(-seed, 1, 8)} if pooled else {})


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def picture(seed: int) -> Tensor:
    """Of sixteen even squares."""
    squares = (2 * normal(seed, 1, 3, 4, 4)).sigmoid()
    return F.interpolate(squares, (SIZE["height"], SIZE["width"]))


@torch.no_grad()
def ready(pipe: Pipe) -> Pipe:
    """The pipeline, silent and in eval mode. Its weights are drawn: values stay at about one, and
    nothing that diffusers initialises with zeros hides what comes in."""
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            for weight in part.eval().parameters():
                if (fan_in := weight[0].numel()) > 1:
                    weight.normal_(std=fan_in**-0.5)
                else:
                    weight.add_(torch.randn_like(weight), alpha=0.1)
    return pipe


def kl_vae(**options: Any) -> AutoencoderKL:
    """Half of a picture's side in four channels."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        scaling_factor=0.8,
        **options,
    )


UNET: dict[str, Any] = {
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "cross_attention_dim": 8,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
UP: dict[str, Any] = {"sample_size": 16, "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
