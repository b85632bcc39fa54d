"""Stable Diffusion XL, alone and with a refiner for its last steps."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from tests.pipelines.parts import GUIDED, NOISE, SIZE, UNET, UP, Pipe, case, kl_vae, ready


def sdxl(kind: type[Any] = StableDiffusionXLPipeline, ids: int = 6, **options: Any) -> Pipe:
    """``ids``: how many numbers about the size a picture is conditioned on."""
    unet = UNet2DConditionModel(
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=4 * ids + 8,
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
        **UNET,
        **UP,
    )
    pipe = kind(
        vae=kl_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=EulerDiscreteScheduler(steps_offset=1, timestep_spacing="leading", **NOISE),
        add_watermarker=False,
        **options,
    )
    return ready(pipe)


class Refined:
    """Two pipelines, called as one: ``base`` does the first half of the steps, ``refiner`` the
    rest."""

    def __init__(self) -> None:
        self.base = sdxl()
        self.refiner = sdxl(StableDiffusionXLImg2ImgPipeline, ids=5, requires_aesthetics_score=True)

    def __call__(
        self, *, height: int, width: int, output_type: str, generator: torch.Generator, **call: Any
    ) -> Any:
        call["generator"] = generator
        size = {"height": height, "width": width}
        latents = self.base(**call, **size, denoising_end=0.5, output_type="latent").images
        return self.refiner(**call, image=latents, denoising_start=0.5, output_type=output_type)


CASES = {
    "sdxl": case(sdxl, pooled=True, **GUIDED, **SIZE),
    "sdxl-refiner": case(Refined, pooled=True, **GUIDED, **SIZE),
}
