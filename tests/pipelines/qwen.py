"""Qwen-Image: guided in two calls of its transformer a step."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)

from tests.pipelines.parts import SIZE, Pipe, case, ready


def qwen_image() -> Pipe:
    transformer = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        joint_attention_dim=8,
        axes_dims_rope=(8, 4, 4),
    )
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.2, 0.3, 0.0],
        latents_std=[1.0, 1.5, 0.8, 1.2],
    )
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return ready(QwenImagePipeline(scheduler, vae, None, None, transformer))


CASES = {
    "qwen-image": case(
        qwen_image,
        **SIZE,
        true_cfg_scale=4.0,
        prompt_embeds_mask=torch.ones(1, 4),
        negative_prompt_embeds_mask=torch.ones(1, 4),
    ),
}
