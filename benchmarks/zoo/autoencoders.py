"""Autoencoders of images: encoded and decoded in one call, at the mode of the posterior."""

from __future__ import annotations

from operator import methodcaller
from typing import Any

import torch
from diffusers import AutoencoderRAE
from diffusers.models.autoencoders import autoencoder_rae
from torch import Tensor, nn

from benchmarks import networks
from sparsify.cli.from_diffusers import Decoder

from . import full, tiny, wrapped
from . import inputs as new


def lively(model: nn.Module) -> None:
    """Without norms torch's weights would let the signal die away, and only biases be seen."""
    for parameter in model.parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter)


def with_registers(**config: Any) -> AutoencoderRAE:
    build = autoencoder_rae._build_encoder
    autoencoder_rae._build_encoder = wrapped.Registers
    try:
        model = AutoencoderRAE(**config)
    finally:
        autoencoder_rae._build_encoder = build
    model._encoder_forward_fn = wrapped.Registers.forward
    return model


@new.later
def hole(size: int, inside: slice) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., inside, inside] = 1
    return mask


# a table: several columns a line
# fmt: off
IMAGE = dict(sample=new.normal(1, 3, 32, 32))
BLOCKS = dict(block_out_channels=(8, 16, 16), norm_num_groups=4,
    down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
tiny("AutoencoderKL", IMAGE, BLOCKS)
tiny("AutoencoderKL (encoder)", IMAGE, BLOCKS, wrap=wrapped.Encoder)
tiny("AutoencoderKL (decoder)", dict(latents=new.normal(1, 4, 16, 16)), BLOCKS, wrap=Decoder)
# as Stable Diffusion 3 and Flux: no convolutions around the latents
tiny("AutoencoderKL (16 channels)", IMAGE, BLOCKS | dict(latent_channels=16, use_quant_conv=False,
    use_post_quant_conv=False))
tiny("AutoencoderKL (fused qkv)", IMAGE, BLOCKS, prepare=methodcaller("fuse_qkv_projections"))
# four tiles
tiny("AutoencoderKL (tiled)", dict(sample=new.normal(1, 3, 48, 48)), BLOCKS | dict(sample_size=32),
    prepare=methodcaller("enable_tiling"))
full("stable-diffusion VAE", "AutoencoderKL", dict(sample=new.normal(1, 3, 512, 512)), networks.VAE)
ASYMMETRIC = dict(down_block_types=("DownEncoderBlock2D",) * 2, down_block_out_channels=(8, 16),
    up_block_types=("UpDecoderBlock2D",) * 2, up_block_out_channels=(16, 16), layers_per_up_block=2,
    norm_num_groups=4)
tiny("AsymmetricAutoencoderKL", IMAGE, ASYMMETRIC)
# the decoder also sees the image outside of a mask
tiny("AsymmetricAutoencoderKL (inpainting)", IMAGE | dict(mask_image=hole(32, slice(8, 24))),
    ASYMMETRIC, {"grids": {"mask_image": None}}, wrap=wrapped.Inpainting)
DEEP = dict(latent_channels=4, attention_head_dim=4,
    encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
    encoder_block_out_channels=(8, 8, 16), decoder_block_out_channels=(8, 8, 16),
    encoder_layers_per_block=(1, 1, 1), decoder_layers_per_block=(1, 1, 1),
    encoder_qkv_multiscales=((), (), (5,)), decoder_qkv_multiscales=((), (), (5,)))
# as in Sana: strided convolutions down, nearest pixels up
tiny("AutoencoderDC", IMAGE, DEEP | dict(downsample_block_type="conv",
    upsample_block_type="interpolate"))
tiny("AutoencoderDC (pixel shuffle)", IMAGE, DEEP | dict(
    decoder_norm_types=("batch_norm", "batch_norm", "rms_norm"),
    decoder_act_fns=("relu", "relu", "silu")))
SMALL = dict(encoder_block_out_channels=(8, 8, 8), decoder_block_out_channels=(8, 8, 8),
    num_encoder_blocks=(1, 1, 1), num_decoder_blocks=(1, 1, 1))
tiny("AutoencoderTiny", IMAGE, SMALL, prepare=lively, wrap=wrapped.Halves)
tiny("AutoencoderTiny (bytes)", IMAGE, SMALL, prepare=lively)
tiny("VQModel", IMAGE, BLOCKS | dict(num_vq_embeddings=32))
tiny("VQModel (MoVQ)", IMAGE, dict(block_out_channels=(32, 32),
    down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"), latent_channels=4,
    norm_type="spatial"), wrap=wrapped.MoVQ)
tiny("ConsistencyDecoderVAE", IMAGE | dict(noise=new.normal(1, 3, 32, 32)), dict(
    encoder_block_out_channels=(8, 16), encoder_down_block_types=("DownEncoderBlock2D",) * 2,
    encoder_layers_per_block=1, encoder_norm_num_groups=4, decoder_block_out_channels=(8, 16),
    decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
    decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2, decoder_layers_per_block=1,
    decoder_norm_num_groups=4), {"grids": {"noise": None}}, wrap=wrapped.ConsistencyStep)
tiny("AutoencoderKLFlux2", IMAGE, BLOCKS | dict(layers_per_block=1, latent_channels=4))
# norms of 32 groups: no fewer channels are possible
tiny("AutoencoderKLHunyuanImage", IMAGE, dict(in_channels=3, out_channels=3, latent_channels=8,
    block_out_channels=(32, 32, 64), layers_per_block=1, spatial_compression_ratio=4,
    sample_size=32))
tiny("AutoencoderKLHunyuanImageRefiner", IMAGE, dict(latent_channels=4,
    block_out_channels=(16, 32, 32), layers_per_block=1, spatial_compression_ratio=4,
    temporal_compression_ratio=2), wrap=wrapped.OneFrame)
tiny("AutoencoderKLKVAE", IMAGE, dict(channels=32, num_enc_blocks=1, num_dec_blocks=1, z_channels=4,
    ch_mult=(1, 2)))
WAN = dict(base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
    temperal_downsample=[False, True], latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
tiny("AutoencoderKLQwenImage", IMAGE, WAN, wrap=wrapped.OneFrame)
tiny("AutoencoderKLQwenImage21", dict(sample=new.normal(1, 4, 32, 32)), WAN | dict(
    decoder_base_dim=8, scale_factor_spatial=4), wrap=wrapped.OneFrame)
tiny("Kandinsky6SRVAE", IMAGE, dict(latent_channels=4, encoder_block_out_channels=(8, 16, 32),
    decoder_block_out_channels=(8, 16, 32), layers_per_block=1, temporal_compression_ratio=2),
    wrap=wrapped.OneFrame)
tiny("AutoencoderRAE", IMAGE, dict(encoder_hidden_size=32, encoder_patch_size=4,
    encoder_num_hidden_layers=1, encoder_input_size=32, decoder_hidden_size=32,
    decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=64,
    patch_size=4), make=with_registers)
