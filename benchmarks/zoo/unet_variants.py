"""UNet2DConditionModel: the networks made of it, and the ways in which pipelines alter it."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection
from torch import Tensor, nn

from benchmarks import networks
from benchmarks.zoo_noise import randomised

from . import Example, full, tiny

CONDITION: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
"""A UNet2DConditionModel with the blocks of Stable Diffusion."""
PIXEL_CASCADE: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "resnet_time_scale_shift": "scale_shift",
    "cross_attention_dim": 24,
    "attention_head_dim": 8,
    "norm_num_groups": 8,
}
"""With the blocks of DeepFloyd-IF and Kandinsky 2."""


def _inputs(channels: int = 4, size: int = 32, width: int = 24, words: int = 7) -> dict[str, Any]:
    return {
        "sample": torch.randn(1, channels, size, size),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": torch.randn(1, words, width),
    }


def _condition(inputs: dict[str, Any] | None = None, **changes: Any) -> Example:
    model = randomised(UNet2DConditionModel(**{**CONDITION, **changes}))
    return Example(model, inputs or _inputs(), edit="sample", options={"dilate": 1})


@tiny("UNet2DConditionModel")
def unet_2d_condition() -> Example:
    return _condition()


@tiny("UNet2DConditionModel (SDXL)")
def unet_sdxl() -> Example:
    added = {"text_embeds": torch.randn(1, 32), "time_ids": torch.randn(1, 6)}
    return _condition(
        {**_inputs(), "added_cond_kwargs": added},
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        attention_head_dim=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        use_linear_projection=True,
    )


@tiny("UNet2DConditionModel (Kandinsky 2)")
def unet_kandinsky_2() -> Example:
    """Conditioned on an image embedding in place of text."""
    inputs = {**_inputs(), "encoder_hidden_states": None}
    inputs["added_cond_kwargs"] = {"image_embeds": torch.randn(1, 32)}
    return _condition(
        inputs,
        **PIXEL_CASCADE,
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
    )


@tiny("UNet2DConditionModel (DeepFloyd-IF)")
def unet_deepfloyd() -> Example:
    return _condition(
        _inputs(channels=3, width=24),
        **{**PIXEL_CASCADE, "cross_attention_dim": 32},
        in_channels=3,
        out_channels=6,
        encoder_hid_dim=24,
        encoder_hid_dim_type="text_proj",
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_skip_time_act=True,
        resnet_out_scale_factor=2**0.5,
        act_fn="gelu",
    )


@tiny("UNet2DConditionModel (DeepFloyd-IF upscaler)")
def unet_deepfloyd_upscaler() -> Example:
    return _condition(
        {**_inputs(channels=6), "class_labels": torch.tensor([250.0])},
        **PIXEL_CASCADE,
        in_channels=6,
        out_channels=6,
        encoder_hid_dim=24,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        class_embed_type="timestep",
        time_embedding_act_fn="gelu",
        time_embedding_dim=32,
        mid_block_scale_factor=2**0.5,
        act_fn="gelu",
    )


@tiny("UNet2DConditionModel (latent upscaler)")
def unet_latent_upscaler() -> Example:
    """The k-diffusion blocks of sd-x2-latent-upscaler."""
    inputs = {**_inputs(channels=8), "timestep_cond": torch.randn(1, 16)}
    return _condition(
        inputs,
        in_channels=8,
        out_channels=5,
        block_out_channels=(32, 32, 64, 64),
        layers_per_block=2,
        down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3),
        mid_block_type=None,
        up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"),
        attention_head_dim=8,
        act_fn="gelu",
        norm_num_groups=None,
        conv_in_kernel=1,
        conv_out_kernel=1,
        time_cond_proj_dim=16,
        time_embedding_type="fourier",
        timestep_post_act="gelu",
        resnet_time_scale_shift="scale_shift",
        only_cross_attention=False,
        cross_attention_norm="layer_norm",
    )


@tiny("UNet2DConditionModel (inpainting)")
def unet_inpainting() -> Example:
    return _condition(_inputs(channels=9), in_channels=9)


@tiny("UNet2DConditionModel (fused qkv)")
def unet_fused() -> Example:
    example = _condition()
    example.model.fuse_qkv_projections()
    example.model.eval()  # the fused layers are new, and in training mode
    return example


@tiny("UNet2DConditionModel (plain attention)")
def unet_plain_attention() -> Example:
    """Softmax between two products, as without scaled_dot_product_attention."""
    example = _condition()
    example.model.set_attn_processor(AttnProcessor())
    return example


@tiny("UNet2DConditionModel (sliced attention)")
def unet_sliced_attention() -> Example:
    example = _condition()
    example.model.set_attention_slice(1)
    return example


@tiny("UNet2DConditionModel (chunked feed-forward)")
def unet_chunked() -> Example:
    example = _condition()
    for module in example.model.modules():
        if hasattr(module, "set_chunk_feed_forward"):
            module.set_chunk_feed_forward(chunk_size=64, dim=1)
    return example


@tiny("UNet2DConditionModel (IP-Adapter)")
def unet_ip_adapter() -> Example:
    """What ``load_ip_adapter`` sets up: keys and values of image tokens beside those of text."""
    inputs = {**_inputs(), "added_cond_kwargs": {"image_embeds": [torch.randn(1, 1, 32)]}}
    example = _condition(inputs)
    model: Any = example.model
    processors = {}
    for name in model.attn_processors:
        width = model.get_submodule(name.removesuffix(".processor")).inner_dim
        processors[name] = (
            IPAdapterAttnProcessor2_0(width, cross_attention_dim=24, num_tokens=(4,))
            if ".attn2." in name
            else AttnProcessor2_0()
        )
    model.set_attn_processor(processors)
    model.encoder_hid_proj = MultiIPAdapterImageProjection([ImageProjection(32, 24, 4)])
    model.register_to_config(encoder_hid_dim_type="ip_image_proj")
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("UNet2DConditionModel (FreeU)")
def unet_freeu() -> Example:
    example = _condition()
    example.model.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    return example


class LoRA(nn.Module):
    """A linear layer with a low-rank update beside it, as peft computes it unmerged."""

    def __init__(self, base: nn.Linear, rank: int = 4, scale: float = 0.5) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, hidden_states: Tensor, *unused: Any) -> Tensor:
        update: Tensor = self.up(self.down(hidden_states))
        return self.base(hidden_states) + update * self.scale


@tiny("UNet2DConditionModel (LoRA)")
def unet_lora() -> Example:
    example = _condition()
    for module in list(example.model.modules()):
        if hasattr(module, "to_q"):
            module.to_q, module.to_k = LoRA(module.to_q), LoRA(module.to_k)
            module.to_v, module.to_out[0] = LoRA(module.to_v), LoRA(module.to_out[0])
    example.model.eval()
    return example


@tiny("UNet2DConditionModel (ControlNet residuals)")
def unet_residuals() -> Example:
    """Called as beside a ControlNet, whose outputs are images on every grid."""
    inputs = {
        **_inputs(),
        "down_block_additional_residuals": (
            torch.randn(1, 16, 32, 32),
            torch.randn(1, 16, 32, 32),
            torch.randn(1, 16, 16, 16),
            torch.randn(1, 32, 16, 16),
        ),
        "mid_block_additional_residual": torch.randn(1, 32, 16, 16),
    }
    return _condition(inputs)


@full("stable-diffusion-1.5")
def stable_diffusion_15() -> Example:
    inputs = _inputs(size=64, width=768, words=77)
    model = UNet2DConditionModel(**networks.STABLE_DIFFUSION_15)
    return Example(model.eval(), inputs, edit="sample", options={"dilate": 1})


@full("stable-diffusion-xl")
def stable_diffusion_xl() -> Example:
    inputs = _inputs(size=128, width=2048, words=77)
    inputs["added_cond_kwargs"] = {
        "text_embeds": torch.randn(1, 1280),
        "time_ids": torch.randn(1, 6),
    }
    model = UNet2DConditionModel(**networks.STABLE_DIFFUSION_XL)
    return Example(model.eval(), inputs, edit="sample", options={"dilate": 1})


@full("kandinsky-2.2")
def kandinsky_22() -> Example:
    inputs = {**_inputs(size=64), "encoder_hidden_states": None}
    inputs["added_cond_kwargs"] = {"image_embeds": torch.randn(1, 1280)}
    model = UNet2DConditionModel(
        sample_size=64,
        block_out_channels=(384, 768, 1152, 1536),
        layers_per_block=3,
        down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        cross_attention_dim=768,
        attention_head_dim=64,
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=1280,
        encoder_hid_dim_type="image_proj",
    )
    return Example(model.eval(), inputs, edit="sample", options={"dilate": 1})
