"""FLUX, whose guidance is an input of its transformer, and Kontext, which also sees a picture."""

from __future__ import annotations

from functools import partial
from typing import Any

from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)

from tests.pipelines.parts import GUIDED, SIZE, Pipe, case, kl_vae, picture, ready


def flux(kind: type[Any] = FluxPipeline) -> Pipe:
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(4, 4, 8),
    )
    vae = kl_vae(shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return ready(kind(scheduler, vae, *[None] * 4, transformer))


CALL: dict[str, Any] = SIZE | GUIDED | {"pooled": True, "negative": False}
CASES = {
    "flux": case(flux, **CALL),
    "flux-kontext": case(
        partial(flux, FluxKontextPipeline),
        **CALL,
        image=picture(4),
        max_area=32 * 32,
        _auto_resize=False,
    ),
}
