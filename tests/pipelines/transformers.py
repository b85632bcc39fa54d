"""Transformers of whole latents: PixArt, Stable Diffusion 3 and Sana."""

from __future__ import annotations

from typing import Any

from diffusers import (
    AutoencoderDC,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)

from tests.pipelines.parts import GUIDED, NOISE, PADDED, SIZE, Pipe, case, kl_vae, ready


def pixart() -> Pipe:
    transformer = PixArtTransformer2DModel(
        sample_size=16,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
    )
    scheduler = DPMSolverMultistepScheduler(**NOISE)
    return ready(PixArtAlphaPipeline(None, None, kl_vae(), transformer, scheduler))


def sd3() -> Pipe:
    transformer = SD3Transformer2DModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        caption_projection_dim=16,
        joint_attention_dim=8,
        pooled_projection_dim=8,
        pos_embed_max_size=8,
    )
    vae = kl_vae(shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False)
    scheduler = FlowMatchEulerDiscreteScheduler()
    return ready(StableDiffusion3Pipeline(transformer, scheduler, vae, *[None] * 6))


def sana() -> Pipe:
    transformer = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=8,
    )
    blocks = ("ResBlock", "EfficientViTBlock")
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=blocks,
        decoder_block_types=blocks,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.41407,
    )
    scheduler = FlowMatchEulerDiscreteScheduler()
    return ready(SanaPipeline(None, None, vae, transformer, scheduler))


MASKED: dict[str, Any] = (
    SIZE | GUIDED | PADDED | {"negative_prompt": None, "use_resolution_binning": False}
)
CASES = {
    "pixart": case(pixart, **MASKED),
    "sd3": case(sd3, pooled=True, **SIZE, **GUIDED),
    "sana": case(sana, **MASKED),
}
