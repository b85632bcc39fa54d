"""UNets, adapters and an upscaler on images."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    DreamLiteUNetModel,
    Kandinsky3UNet,
    Kandinsky6SRLatentUpscalerBank,
    StableCascadeUNet,
    T2IAdapter,
    UNet2DModel,
)

from benchmarks import networks
from benchmarks.zoo_noise import randomised

from . import Example, full, tiny
from .autoencoders import OneFrame


def _inputs() -> dict[str, Any]:
    return {
        "sample": torch.randn(1, 4, 32, 32),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }


@tiny("UNet2DModel")
def unet_2d() -> Example:
    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        layers_per_block=1,
    )
    inputs = {"sample": torch.randn(1, 3, 32, 32), "timestep": torch.tensor(10)}
    return Example(randomised(model), inputs, edit="sample")


@tiny("UNet2DModel (class labels)")
def unet_2d_classes() -> Example:
    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(16, 32),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=10,
        norm_num_groups=8,
        layers_per_block=1,
    )
    inputs = {
        "sample": torch.randn(1, 3, 32, 32),
        "timestep": torch.tensor(10),
        "class_labels": torch.tensor([3]),
    }
    return Example(randomised(model), inputs, edit="sample")


@tiny("UNet2DModel (NCSN++)")
def unet_2d_ncsnpp() -> Example:
    """Skips of the image itself and smoothed resampling, as in score-sde-ve."""
    model = UNet2DModel(
        sample_size=32,
        block_out_channels=(32, 32, 32),
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
        up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"),
        time_embedding_type="fourier",
        mid_block_scale_factor=2**0.5,
        freq_shift=0,
        norm_num_groups=None,
        layers_per_block=1,
        attention_head_dim=None,
    )
    inputs = {"sample": torch.randn(1, 3, 32, 32), "timestep": torch.tensor([10.0])}
    return Example(randomised(model), inputs, edit="sample")


@tiny("DreamLiteUNetModel")
def dreamlite() -> Example:
    model = DreamLiteUNetModel(
        sample_size=32,
        block_out_channels=(16, 32, 32),
        cross_attention_dim=24,
        attention_head_dim=(2, 4, 4),
        norm_num_groups=8,
        layers_per_block=1,
        ff_mult=2,
        addition_embed_type="time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8,
        use_linear_projection=True,
    )
    inputs = {**_inputs(), "added_cond_kwargs": {"time_ids": torch.randn(1, 6)}}
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("Kandinsky3UNet")
def kandinsky_3() -> Example:
    model = Kandinsky3UNet(
        block_out_channels=(16, 16, 32, 32),
        time_embedding_dim=16,
        groups=4,
        attention_head_dim=8,
        layers_per_block=2,
        cross_attention_dim=16,
        encoder_hid_dim=24,
    )
    inputs = {**_inputs(), "encoder_attention_mask": torch.ones(1, 7)}
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("StableCascadeUNet")
def stable_cascade() -> Example:
    """The prior, on latents of Stage C."""
    model = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=16,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_text_in_channels=24,
        clip_text_pooled_in_channels=24,
        clip_image_in_channels=12,
        timestep_ratio_embedding_dim=8,
        switch_level=(False,),
    )
    inputs = {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep_ratio": torch.tensor([0.3]),
        "clip_text_pooled": torch.randn(1, 1, 24),
        "clip_text": torch.randn(1, 7, 24),
        "clip_img": torch.randn(1, 1, 12),
    }
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("StableCascadeUNet (decoder)")
def stable_cascade_decoder() -> Example:
    """Stage B: conditioned on the latents of Stage C, which lie on a smaller grid."""
    model = StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        patch_size=2,
        conditioning_dim=16,
        block_out_channels=(8, 16, 16),
        num_attention_heads=(-1, -1, 2),
        down_num_layers_per_block=(1, 1, 1),
        up_num_layers_per_block=(1, 1, 1),
        down_blocks_repeat_mappers=(1, 1, 1),
        up_blocks_repeat_mappers=(2, 2, 1),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        clip_text_pooled_in_channels=24,
        effnet_in_channels=4,
        pixel_mapper_in_channels=3,
        timestep_ratio_embedding_dim=8,
        timestep_conditioning_type=("sca",),
        dropout=(0.0, 0.0, 0.1),
    )
    inputs = {
        "sample": torch.randn(1, 4, 32, 32),
        "timestep_ratio": torch.tensor([0.3]),
        "clip_text_pooled": torch.randn(1, 1, 24),
        "effnet": torch.randn(1, 4, 4, 4),
    }
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


def _adapter(kind: str, factor: int) -> Example:
    model = T2IAdapter(
        in_channels=3,
        channels=[8, 16, 16, 16],
        num_res_blocks=1,
        downscale_factor=factor,
        adapter_type=kind,
    )
    size = 16 * factor
    return Example(randomised(model), {"x": torch.rand(1, 3, size, size)}, edit="x")


@tiny("T2IAdapter")
def t2i_adapter() -> Example:
    return _adapter("full_adapter", 4)


@tiny("T2IAdapter (XL)")
def t2i_adapter_xl() -> Example:
    return _adapter("full_adapter_xl", 4)


@tiny("T2IAdapter (light)")
def t2i_adapter_light() -> Example:
    return _adapter("light_adapter", 4)


def _upscaler(scale: int) -> Example:
    bank = Kandinsky6SRLatentUpscalerBank(
        in_channels=4,
        stage_channels=(16, 16, 8),
        num_pre_blocks=1,
        num_mid_blocks=1,
        num_post_blocks=1,
        num_x2_adapter_blocks=1,
    )
    inputs = {"sample": torch.randn(1, 4, 16, 16)}
    return Example(randomised(OneFrame(bank, scale=scale)), inputs, edit="sample")


@tiny("Kandinsky6SRLatentUpscalerBank")
def upscaler_x2() -> Example:
    return _upscaler(2)


@tiny("Kandinsky6SRLatentUpscalerBank (x4)")
def upscaler_x4() -> Example:
    return _upscaler(4)


@full("ddpm-church-256")
def ddpm_church() -> Example:
    model = UNet2DModel(**networks.DDPM_CHURCH_256)
    inputs = {"sample": torch.randn(1, 3, 256, 256), "timestep": torch.tensor(10)}
    return Example(model.eval(), inputs, edit="sample")
