"""Autoencoders of images: encoded and decoded in one call, at the mode of the posterior."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AsymmetricAutoencoderKL,
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLHunyuanImage,
    AutoencoderKLHunyuanImageRefiner,
    AutoencoderKLKVAE,
    AutoencoderKLQwenImage,
    AutoencoderKLQwenImage21,
    AutoencoderRAE,
    AutoencoderTiny,
    ConsistencyDecoderVAE,
    Kandinsky6SRVAE,
    VQModel,
)
from diffusers.models.autoencoders import autoencoder_rae
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.zoo_noise import randomised
from sparsify.cli.from_diffusers import Decoder

from . import Example, full, tiny

BLOCKS: dict[str, Any] = {
    "block_out_channels": (8, 16, 16),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 4,
}


def _whole(model: nn.Module, channels: int = 3, size: int = 32, **others: Tensor) -> Example:
    """``others`` are inputs that no edit changes."""
    inputs = {"sample": torch.randn(1, channels, size, size), **others}
    options = {"grids": dict.fromkeys(others)}
    return Example(randomised(model), inputs, edit="sample", options=options)


class OneFrame(nn.Module):
    """A video autoencoder on a picture: a video of one frame."""

    def __init__(self, model: nn.Module, **constants: Any) -> None:
        super().__init__()
        self.model, self.constants = model, constants

    def forward(self, sample: Tensor) -> Tensor:
        video: Tensor = self.model(sample.unsqueeze(2), **self.constants).sample
        return video.squeeze(2)


@tiny("AutoencoderKL")
def autoencoder_kl() -> Example:
    return _whole(AutoencoderKL(**BLOCKS))


@tiny("AutoencoderKL (encoder)")
def autoencoder_kl_encoder() -> Example:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = AutoencoderKL(**BLOCKS)

        def forward(self, sample: Tensor) -> Tensor:
            latents: Tensor = self.model.encode(sample).latent_dist.mode()
            return latents

    return _whole(Encoder())


@tiny("AutoencoderKL (decoder)")
def autoencoder_kl_decoder() -> Example:
    model = Decoder(AutoencoderKL(**BLOCKS))
    return Example(randomised(model), {"latents": torch.randn(1, 4, 16, 16)}, edit="latents")


@tiny("AutoencoderKL (16 channels)")
def autoencoder_kl_16() -> Example:
    """As Stable Diffusion 3 and Flux: no convolutions around the latents."""
    model = AutoencoderKL(
        **BLOCKS, latent_channels=16, use_quant_conv=False, use_post_quant_conv=False
    )
    return _whole(model)


@tiny("AutoencoderKL (fused qkv)")
def autoencoder_kl_fused() -> Example:
    model = AutoencoderKL(**BLOCKS)
    model.fuse_qkv_projections()
    return _whole(model)


@tiny("AutoencoderKL (tiled)")
def autoencoder_kl_tiled() -> Example:
    model = AutoencoderKL(**BLOCKS, sample_size=32)
    model.enable_tiling()
    return _whole(model, size=48)  # four tiles


@tiny("AsymmetricAutoencoderKL")
def asymmetric() -> Example:
    return _whole(_asymmetric())


@tiny("AsymmetricAutoencoderKL (inpainting)")
def asymmetric_inpainting() -> Example:
    """The decoder also sees the image outside of a mask."""

    class Inpainting(nn.Module):
        """With another name for the mask: ``update`` has its own ``mask``."""

        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.model = model

        def forward(self, sample: Tensor, mask_image: Tensor) -> Tensor:
            image: Tensor = self.model(sample, mask=mask_image).sample
            return image

    mask = torch.zeros(1, 1, 32, 32)
    mask[..., 8:24, 8:24] = 1
    return _whole(Inpainting(_asymmetric()), mask_image=mask)


def _asymmetric() -> AsymmetricAutoencoderKL:
    return AsymmetricAutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        down_block_out_channels=(8, 16),
        up_block_types=("UpDecoderBlock2D",) * 2,
        up_block_out_channels=(16, 16),
        layers_per_up_block=2,
        norm_num_groups=4,
    )


def _deep_compression(**changes: Any) -> Example:
    model = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8, 16),
        decoder_block_out_channels=(8, 8, 16),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), (5,)),
        decoder_qkv_multiscales=((), (), (5,)),
        **changes,
    )
    return _whole(model)


@tiny("AutoencoderDC")
def deep_compression() -> Example:
    """As in Sana: strided convolutions down, nearest pixels up."""
    return _deep_compression(downsample_block_type="conv", upsample_block_type="interpolate")


@tiny("AutoencoderDC (pixel shuffle)")
def deep_compression_shuffle() -> Example:
    return _deep_compression(
        decoder_norm_types=("batch_norm", "batch_norm", "rms_norm"),
        decoder_act_fns=("relu", "relu", "silu"),
    )


class Halves(nn.Module):
    """Encodes and decodes as pipelines do; ``forward`` of AutoencoderTiny rounds to bytes."""

    def __init__(self, model: AutoencoderTiny) -> None:
        super().__init__()
        self.model = model

    def forward(self, sample: Tensor) -> Tensor:
        image: Tensor = self.model.decode(self.model.encode(sample).latents).sample
        return image


@tiny("AutoencoderTiny")
def autoencoder_tiny() -> Example:
    return _whole(Halves(_tiny()))


@tiny("AutoencoderTiny (bytes)")
def autoencoder_tiny_bytes() -> Example:
    return _whole(_tiny())


def _tiny() -> AutoencoderTiny:
    """Without norms torch's weights would let the signal die away, and only biases be seen."""
    model = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    for parameter in model.parameters():
        if parameter.dim() == 4:
            nn.init.kaiming_normal_(parameter)
    return model


@tiny("VQModel")
def vq() -> Example:
    return _whole(VQModel(**BLOCKS, num_vq_embeddings=32))


@tiny("VQModel (MoVQ)")
def movq() -> Example:
    """Kandinsky 2: the latents modulate the norms of the decoder, and are not quantised."""

    class MoVQ(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = VQModel(
                block_out_channels=(32, 32),
                down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
                up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
                latent_channels=4,
                norm_type="spatial",
            )

        def forward(self, sample: Tensor) -> Tensor:
            latents = self.model.encode(sample).latents
            image: Tensor = self.model.decode(latents, force_not_quantize=True).sample
            return image

    return _whole(MoVQ())


class ConsistencyStep(nn.Module):
    """Encodes, and decodes by the first of two steps; the noise, which ``decode`` draws anew, is
    given."""

    def __init__(self, model: ConsistencyDecoderVAE) -> None:
        super().__init__()
        self.model = model
        scheduler = model.decoder_scheduler
        scheduler.set_timesteps(2)
        step = scheduler.timesteps[0]
        self.register_buffer("step", step)
        self.scales = tuple(
            float(table[step]) for table in (scheduler.c_in, scheduler.c_out, scheduler.c_skip)
        )

    def forward(self, sample: Tensor, noise: Tensor) -> Tensor:
        c_in, c_out, c_skip = self.scales
        latents = self.model.encode(sample).latent_dist.mode()
        latents = latents * self.model.config.scaling_factor - self.model.means
        latents = nn.functional.interpolate(
            latents / self.model.stds, mode="nearest", scale_factor=2.0
        )
        steered = torch.concat([noise * c_in, latents], dim=1)
        image: Tensor = self.model.decoder_unet(steered, self.step).sample[:, :3]
        return image * c_out + noise * c_skip


@tiny("ConsistencyDecoderVAE")
def consistency_decoder() -> Example:
    model = ConsistencyDecoderVAE(
        encoder_block_out_channels=(8, 16),
        encoder_down_block_types=("DownEncoderBlock2D",) * 2,
        encoder_layers_per_block=1,
        encoder_norm_num_groups=4,
        decoder_block_out_channels=(8, 16),
        decoder_down_block_types=("ResnetDownsampleBlock2D",) * 2,
        decoder_up_block_types=("ResnetUpsampleBlock2D",) * 2,
        decoder_layers_per_block=1,
        decoder_norm_num_groups=4,
    )
    return _whole(ConsistencyStep(model), noise=torch.randn(1, 3, 32, 32))


@tiny("AutoencoderKLFlux2")
def flux_2() -> Example:
    return _whole(AutoencoderKLFlux2(**BLOCKS, layers_per_block=1, latent_channels=4))


@tiny("AutoencoderKLHunyuanImage")
def hunyuan_image() -> Example:
    """Norms of 32 groups: no fewer channels are possible."""
    model = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(32, 32, 64),
        layers_per_block=1,
        spatial_compression_ratio=4,
        sample_size=32,
    )
    return _whole(model)


@tiny("AutoencoderKLHunyuanImageRefiner")
def hunyuan_image_refiner() -> Example:
    model = AutoencoderKLHunyuanImageRefiner(
        latent_channels=4,
        block_out_channels=(16, 32, 32),
        layers_per_block=1,
        spatial_compression_ratio=4,
        temporal_compression_ratio=2,
    )
    return _whole(OneFrame(model))


@tiny("AutoencoderKLKVAE")
def kvae() -> Example:
    model = AutoencoderKLKVAE(
        channels=32, num_enc_blocks=1, num_dec_blocks=1, z_channels=4, ch_mult=(1, 2)
    )
    return _whole(model)


@tiny("AutoencoderKLQwenImage")
def qwen_image() -> Example:
    model = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    return _whole(OneFrame(model))


@tiny("AutoencoderKLQwenImage21")
def qwen_image_21() -> Example:
    model = AutoencoderKLQwenImage21(
        base_dim=8,
        decoder_base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_spatial=4,
    )
    return _whole(OneFrame(model), channels=4)


@tiny("Kandinsky6SRVAE")
def kandinsky_6_sr() -> Example:
    model = Kandinsky6SRVAE(
        latent_channels=4,
        encoder_block_out_channels=(8, 16, 32),
        decoder_block_out_channels=(8, 16, 32),
        layers_per_block=1,
        temporal_compression_ratio=2,
    )
    return _whole(OneFrame(model))


class Registers(nn.Module):
    """In place of DINOv2 with registers, which transformers defines: its embeddings and blocks."""

    def __init__(self, hidden_size: int, patch_size: int, num_hidden_layers: int, **_: Any) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, hidden_size, patch_size, patch_size)
        self.extra = nn.Parameter(torch.randn(1, 5, hidden_size))
        self.position = nn.Parameter(torch.randn(1, 64, hidden_size))
        blocks = (
            autoencoder_rae.ViTMAELayer(
                hidden_size=hidden_size, num_attention_heads=2, intermediate_size=2 * hidden_size
            )
            for _ in range(num_hidden_layers)
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        tokens = torch.cat([self.extra.expand(len(tokens), -1, -1), tokens], dim=1)
        hidden_states: Tensor = self.norm(self.blocks(tokens))[:, 5:]
        return hidden_states


@tiny("AutoencoderRAE")
def representations() -> Example:
    build = autoencoder_rae._build_encoder
    autoencoder_rae._build_encoder = Registers
    try:
        model = AutoencoderRAE(
            encoder_hidden_size=32,
            encoder_patch_size=4,
            encoder_num_hidden_layers=1,
            encoder_input_size=32,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=1,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=64,
            patch_size=4,
        )
    finally:
        autoencoder_rae._build_encoder = build
    model._encoder_forward_fn = Registers.forward
    return _whole(model)


@full("stable-diffusion VAE")
def stable_diffusion_vae() -> Example:
    model = AutoencoderKL(**networks.VAE)
    return Example(model.eval(), {"sample": torch.randn(1, 3, 512, 512)}, edit="sample")
