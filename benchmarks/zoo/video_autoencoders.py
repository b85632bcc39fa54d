"""Autoencoders on videos: encoding and decoding in one call."""

from __future__ import annotations

import torch
from diffusers import (
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLCosmos,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLKVAEVideo,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLMagvit,
    AutoencoderKLMiniMaxH3,
    AutoencoderKLMochi,
    AutoencoderKLTemporalDecoder,
    AutoencoderKLWan,
    AutoencoderVidTok,
    LTX2VideoDiffusionDecoderModel,
)
from torch import Tensor, nn

from benchmarks.zoo_noise import randomised

from . import Example, tiny


class FixedNoise(nn.Module):
    """LTX 2's diffusion decoder with the noise as an input: its own call draws it anew."""

    def __init__(self, model: LTX2VideoDiffusionDecoderModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor, noise: Tensor) -> Tensor:
        decoder = self.model.decoder
        context = decoder.forward_stage_4(decoder.forward_stages_1_to_3(z))
        return decoder.denoise(context, noise, decoder.default_num_inference_steps)


def lively(model: nn.Module) -> nn.Module:
    """Weights of variance 1 / fan-in: torch's own are smaller, and behind twenty layers of them
    nothing of the input is left but biases."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(3**0.5)
    return randomised(model)


def roundtrip(model: nn.Module, frames: int, size: int = 32) -> Example:
    """An autoencoder on a few frames."""
    inputs = {"sample": torch.randn(1, 3, frames, size, size)}
    return Example(lively(model), inputs, edit="sample", options={"dilate": 1})


@tiny("AutoencoderKLTemporalDecoder")
def temporal_decoder() -> Example:
    """Stable Video Diffusion's: the frames are a batch of images until they are decoded."""
    model = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        layers_per_block=1,
    )
    inputs = {"sample": torch.randn(3, 3, 32, 32), "num_frames": 3}
    return Example(lively(model), inputs, edit="sample", options={"dilate": 1})


@tiny("AutoencoderKLCogVideoX")
def cogvideox() -> Example:
    model = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(8, 16, 16),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        temporal_compression_ratio=4,
    )
    return roundtrip(model, frames=9)


@tiny("AutoencoderKLWan")
def wan() -> Example:
    model = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return roundtrip(model, frames=5)


@tiny("AutoencoderKLLTXVideo")
def ltx() -> Example:
    model = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
    )
    return roundtrip(model, frames=5)


@tiny("AutoencoderKLLTX2Video")
def ltx2() -> Example:
    model = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8, 8, 16, 16),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        patch_size=1,
    )
    return roundtrip(model, frames=9)


@tiny("AutoencoderKLMochi")
def mochi() -> Example:
    model = AutoencoderKLMochi(
        latent_channels=4,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )
    return roundtrip(model, frames=7)


HUNYUAN = {"latent_channels": 4, "layers_per_block": 1}


@tiny("AutoencoderKLHunyuanVideo")
def hunyuan() -> Example:
    model = AutoencoderKLHunyuanVideo(
        **HUNYUAN,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
    )
    return roundtrip(model, frames=5)


@tiny("AutoencoderKLHunyuanVideo15")
def hunyuan_15() -> Example:
    model = AutoencoderKLHunyuanVideo15(
        **HUNYUAN,
        block_out_channels=(16, 16, 16),
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )
    return roundtrip(model, frames=3)


@tiny("AutoencoderKLAllegro")
def allegro() -> Example:
    """It only works in tiles; here one tile is the whole video."""
    model = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 3,
        up_block_types=("AllegroUpBlock3D",) * 3,
        block_out_channels=(8, 8, 8),
        temporal_downsample_blocks=(True, True, False),
        temporal_upsample_blocks=(False, True, True),
        layers_per_block=1,
        norm_num_groups=4,
    )
    model.enable_tiling()
    model.kernel, model.stride = (8, 32, 32), (4, 16, 16)
    return roundtrip(model, frames=8)


@tiny("AutoencoderKLCosmos")
def cosmos() -> Example:
    model = AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(4,),
        resolution=32,
        num_layers=1,
    )
    return roundtrip(model, frames=9)


@tiny("AutoencoderKLMagvit")
def magvit() -> Example:
    model = AutoencoderKLMagvit(
        latent_channels=4,
        block_out_channels=(8, 8, 8),
        down_block_types=(
            "SpatialDownBlock3D",
            "SpatialTemporalDownBlock3D",
            "SpatialTemporalDownBlock3D",
        ),
        up_block_types=("SpatialUpBlock3D", "SpatialTemporalUpBlock3D", "SpatialTemporalUpBlock3D"),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return roundtrip(model, frames=5)


@tiny("AutoencoderKLKVAEVideo")
def kvae() -> Example:
    model = AutoencoderKLKVAEVideo(
        ch=32, ch_mult=(1, 1), num_res_blocks=1, z_channels=4, temporal_compress_times=2
    )
    return roundtrip(model, frames=3, size=16)


@tiny("AutoencoderKLMiniMaxH3")
def minimax_h3() -> Example:
    """Two clips of five frames: a decoder of tokens, and frames of both clips faded together."""
    model = AutoencoderKLMiniMaxH3(
        latent_channels=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        spatial_downsample_factors=(2, 2),
        temporal_downsample_factors=(2, 1),
        norm_num_groups=4,
        decoder_num_layers=2,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=16,
        decoder_num_register_tokens=2,
        decoder_ffn_mult=2,
        clip_length=5,
        token_drop=1,
        latents_mean=(0.0,) * 4,
        latents_std=(1.0,) * 4,
    )
    return roundtrip(model, frames=8)


@tiny("AutoencoderVidTok")
def vidtok() -> Example:
    model = AutoencoderVidTok(
        ch=16, ch_mult=[1, 1, 1], z_channels=4, num_res_blocks=1, is_causal=True
    )
    example = roundtrip(model, frames=5)
    return Example(example.model, {**example.inputs, "sample_posterior": False}, edit="sample")


@tiny("LTX2VideoDiffusionDecoderModel")
def ltx2_diffusion_decoder() -> Example:
    model = LTX2VideoDiffusionDecoderModel(
        latent_channels=8,
        patch_size=2,
        decoder_head_dim=16,
        decoder_stage_channels=(32, 32, 16, 16, 16),
        decoder_stage_depths=(1, 1, 1, 1, 1),
        decoder_stage_kernels=((3, 3, 3),) * 4,
        decoder_upsample_strides=((1, 1, 1), (2, 1, 1), (2, 1, 1), (2, 2, 2)),
        decoder_upsample_channel_reductions=(1, 2, 1, 1),
        decoder_stage5_kernel=(3, 3, 3),
        decoder_t_emb_dim=32,
        spatial_compression_ratio=4,
    )
    inputs = {"z": torch.randn(1, 8, 2, 8, 8), "noise": torch.randn(1, 3, 9, 32, 32)}
    return Example(lively(FixedNoise(model)), inputs, edit="z", options={"grids": {"noise": None}})
