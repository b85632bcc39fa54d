"""Stable Diffusion, its image-to-image forms and what is added to it."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)

from tests.pipelines.parts import (
    GUIDED,
    NOISE,
    SIZE,
    UNET,
    UP,
    Pipe,
    case,
    kl_vae,
    normal,
    picture,
    ready,
)


def stable_diffusion(
    kind: type[Any] = StableDiffusionPipeline, in_channels: int = 4, **parts: Any
) -> Pipe:
    plain = {
        "vae": kl_vae(),
        "text_encoder": None,
        "tokenizer": None,
        "unet": UNet2DConditionModel(in_channels=in_channels, **UNET, **UP),
        "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1, **NOISE),
        "safety_checker": None,
        "feature_extractor": None,
    }
    return ready(kind(**plain | parts, requires_safety_checker=False))


def controlled(count: int) -> Pipe:
    options = UNET | {"conditioning_embedding_out_channels": (4, 8)}
    nets = [ControlNetModel(**options) for _ in range(count)]
    controlnet = nets if count > 1 else nets[0]
    pipe = stable_diffusion(StableDiffusionControlNetPipeline, controlnet=controlnet)
    for net in nets:  # no norm keeps the control's values at about one
        net.controlnet_cond_embedding.conv_out.weight.data *= 16
    return pipe


def ip_adapted() -> Pipe:
    """With image prompts of six numbers, each seen as four tokens."""
    unet = UNet2DConditionModel(**UNET, **UP)
    crossing = [part for name, part in unet.named_modules() if name.endswith("attn2")]
    attention = {
        f"{2 * place + 1}.{name}_ip.weight": torch.empty_like(part.to_k.weight)
        for place, part in enumerate(crossing)
        for name in ("to_k", "to_v")
    }
    projection = {
        "proj.weight": torch.empty(32, 6),
        "proj.bias": torch.zeros(32),
        "norm.weight": torch.ones(8),
        "norm.bias": torch.zeros(8),
    }
    weights = {"ip_adapter": attention, "image_proj": projection}
    unet._load_ip_adapter_weights(weights, low_cpu_mem_usage=False)
    return stable_diffusion(unet=unet)


def corner() -> torch.Tensor:
    mask = torch.zeros(1, 1, *SIZE.values())
    mask[..., 16:, 16:] = 1
    return mask


INPAINT: dict[str, Any] = GUIDED | SIZE | {"image": picture(4), "mask_image": corner()}
inpainting = partial(stable_diffusion, StableDiffusionInpaintPipeline)
CASES = {
    "sd": case(stable_diffusion, **GUIDED, **SIZE),
    "sd-img2img": case(
        partial(stable_diffusion, StableDiffusionImg2ImgPipeline), **GUIDED, image=picture(4)
    ),
    "sd-inpaint": case(partial(inpainting, in_channels=9), **INPAINT),
    "sd-inpaint-blended": case(inpainting, **INPAINT),
    "sd-controlnet": case(partial(controlled, 1), **GUIDED, **SIZE, image=picture(4)),
    "sd-controlnets": case(
        partial(controlled, 2), **GUIDED, **SIZE, image=[picture(4), picture(5)]
    ),
    "sd-ip-adapter": case(
        ip_adapted, **GUIDED, **SIZE, ip_adapter_image_embeds=[normal(4, 2, 1, 6)]
    ),
}
