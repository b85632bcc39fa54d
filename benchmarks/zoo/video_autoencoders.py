"""Autoencoders on videos: encoding and decoding in one call."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from . import inputs as new
from . import tiny
from .autoencoders import WAN
from .unets import DILATE
from .wrapped_videos import FixedNoise


def lively(model: nn.Module) -> None:
    """Weights of variance 1 / fan-in: torch's own are smaller, and behind twenty layers of them
    nothing of the input is left but biases."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3**0.5)


def in_one_tile(model: Any) -> None:
    """Allegro only works in tiles; here one tile is the whole video."""
    lively(model)
    model.enable_tiling()
    model.kernel, model.stride = (8, 32, 32), (4, 16, 16)


def roundtrip(name: str, frames: int, config: dict[str, Any], size: int = 32, **how: Any) -> None:
    """An autoencoder on a few frames."""
    video = dict(sample=new.normal(1, 3, frames, size, size))
    tiny(name, video, config, DILATE, **{"prepare": lively, **how})


# a table: several columns a line
# fmt: off
# Stable Video Diffusion's: the frames are a batch of images until they are decoded
tiny("AutoencoderKLTemporalDecoder", dict(sample=new.normal(3, 3, 32, 32), num_frames=3), dict(
    block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
    layers_per_block=1), DILATE, prepare=lively)
roundtrip("AutoencoderKLCogVideoX", 9, dict(down_block_types=("CogVideoXDownBlock3D",) * 3,
    up_block_types=("CogVideoXUpBlock3D",) * 3, block_out_channels=(8, 16, 16), latent_channels=4,
    layers_per_block=1, norm_num_groups=4, temporal_compression_ratio=4))
roundtrip("AutoencoderKLWan", 5, WAN)
roundtrip("AutoencoderKLLTXVideo", 5, dict(latent_channels=8, block_out_channels=(8, 8, 8, 8),
    decoder_block_out_channels=(8, 8, 8, 8), layers_per_block=(1, 1, 1, 1, 1),
    decoder_layers_per_block=(1, 1, 1, 1, 1), spatio_temporal_scaling=(True, True, False, False),
    decoder_spatio_temporal_scaling=(True, True, False, False), patch_size=2))
roundtrip("AutoencoderKLLTX2Video", 9, dict(latent_channels=8, block_out_channels=(8, 8, 16, 16),
    decoder_block_out_channels=(8, 16, 32), layers_per_block=(1, 1, 1, 1, 1),
    decoder_layers_per_block=(1, 1, 1, 1), patch_size=1))
roundtrip("AutoencoderKLMochi", 7, dict(latent_channels=4,
    encoder_block_out_channels=(32, 32, 32, 32), decoder_block_out_channels=(32, 32, 32, 32),
    layers_per_block=(1, 1, 1, 1, 1), latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4))
roundtrip("AutoencoderKLHunyuanVideo", 5, dict(latent_channels=4, layers_per_block=1,
    down_block_types=("HunyuanVideoDownBlock3D",) * 4,
    up_block_types=("HunyuanVideoUpBlock3D",) * 4, block_out_channels=(8, 8, 8, 8),
    norm_num_groups=4))
roundtrip("AutoencoderKLHunyuanVideo15", 3, dict(latent_channels=4, layers_per_block=1,
    block_out_channels=(16, 16, 16), spatial_compression_ratio=4, temporal_compression_ratio=2))
roundtrip("AutoencoderKLAllegro", 8, dict(down_block_types=("AllegroDownBlock3D",) * 3,
    up_block_types=("AllegroUpBlock3D",) * 3, block_out_channels=(8, 8, 8),
    temporal_downsample_blocks=(True, True, False), temporal_upsample_blocks=(False, True, True),
    layers_per_block=1, norm_num_groups=4), prepare=in_one_tile)
roundtrip("AutoencoderKLCosmos", 9, dict(latent_channels=4, encoder_block_out_channels=(8, 8, 8, 8),
    decode_block_out_channels=(8, 8, 8, 8), attention_resolutions=(4,), resolution=32,
    num_layers=1))
roundtrip("AutoencoderKLMagvit", 5, dict(latent_channels=4, block_out_channels=(8, 8, 8),
    layers_per_block=1, norm_num_groups=4,
    down_block_types=("SpatialDownBlock3D", *["SpatialTemporalDownBlock3D"] * 2),
    up_block_types=("SpatialUpBlock3D", *["SpatialTemporalUpBlock3D"] * 2)))
roundtrip("AutoencoderKLKVAEVideo", 3, dict(ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4,
    temporal_compress_times=2), size=16)
# two clips of five frames: a decoder of tokens, and frames of both clips faded together
roundtrip("AutoencoderKLMiniMaxH3", 8, dict(latent_channels=4, block_out_channels=(8, 16),
    layers_per_block=1, spatial_downsample_factors=(2, 2), temporal_downsample_factors=(2, 1),
    norm_num_groups=4, decoder_num_layers=2, decoder_num_attention_heads=2,
    decoder_attention_head_dim=16, decoder_num_register_tokens=2, decoder_ffn_mult=2, clip_length=5,
    token_drop=1, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4))
tiny("AutoencoderVidTok", dict(sample=new.normal(1, 3, 5, 32, 32), sample_posterior=False), dict(
    ch=16, ch_mult=[1, 1, 1], z_channels=4, num_res_blocks=1, is_causal=True), prepare=lively)
tiny("LTX2VideoDiffusionDecoderModel", dict(z=new.normal(1, 8, 2, 8, 8),
    noise=new.normal(1, 3, 9, 32, 32)), dict(latent_channels=8, patch_size=2, decoder_head_dim=16,
    decoder_stage_channels=(32, 32, 16, 16, 16), decoder_stage_depths=(1, 1, 1, 1, 1),
    decoder_stage_kernels=((3, 3, 3),) * 4, decoder_t_emb_dim=32,
    decoder_upsample_strides=((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 2, 2)),
    decoder_upsample_channel_reductions=(1, 2, 1, 1), decoder_stage5_kernel=(3, 3, 3),
    spatial_compression_ratio=4), {"grids": {"noise": None}}, prepare=lively, wrap=FixedNoise)
