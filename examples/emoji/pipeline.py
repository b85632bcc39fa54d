"""The model as a pipeline of diffusers, whose latents are pixels put into channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, StableDiffusionPipeline
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

from . import net


class Patches(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not typed
    """Stands for an autoencoder: squares of pixels are channels, and nothing is lost."""

    @register_to_config
    def __init__(
        self, block_out_channels: tuple[int, ...] = (1, 1), scaling_factor: float = 1.0
    ) -> None:
        """One level more in ``block_out_channels`` than times that a side is halved."""
        super().__init__()
        self.side = 2 ** (len(block_out_channels) - 1)
        # By which pipelines know the device and dtype of a model.
        self.one = nn.Parameter(torch.ones(()), requires_grad=False)

    def encode(self, pixels: Tensor) -> Any:
        """float [N, 3, H, W] -> ``latents`` [N, 12, H/2, W/2]"""
        return SimpleNamespace(latents=nn.functional.pixel_unshuffle(pixels, self.side))

    def decode(self, latents: Tensor, return_dict: bool = True, generator: Any = None) -> Any:
        """The other way round."""
        sample = nn.functional.pixel_shuffle(latents, self.side)
        return DecoderOutput(sample=sample) if return_dict else (sample,)


def picture(output: Any) -> Tensor:
    """float [1, 3, 64, 64] in 0..1, of what a call with ``output_type="pt"`` gave."""
    return torch.as_tensor(output.images)


def pixels(mask: Tensor) -> Tensor:
    """bool [64, 64], of latents [32, 32] or [N, 32, 32]."""
    own = mask if mask.dim() == 2 else mask.any(0)
    return own.repeat_interleave(net.PATCH, 0).repeat_interleave(net.PATCH, 1)


def pipeline(model: net.Model | None = None) -> StableDiffusionPipeline:
    """Of a model, by default the trained one: pictures of 64 x 64 pixels."""
    unet, text_encoder, tokenizer = model or net.load()
    parts = Patches().eval(), text_encoder, tokenizer, unet, net.scheduler(), None, None
    pipe = StableDiffusionPipeline(*parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe
