"""UNets, adapters and an upscaler on images; the ways in which pipelines alter a UNet."""

from __future__ import annotations

from functools import partial
from operator import methodcaller
from typing import Any

from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    IPAdapterAttnProcessor2_0,
)
from diffusers.models.embeddings import ImageProjection, MultiIPAdapterImageProjection

from benchmarks import networks

from . import full, tiny
from . import inputs as new
from .wrapped import LoRA, OneFrame

# a table: several columns a line
# fmt: off
DILATE = {"dilate": 1}
"""Wider masks would cover all of these small images, and packing would go untested."""
STEP = new.tensor(10)
# UNet2DModel
PIXELS = dict(sample=new.normal(1, 3, 32, 32), timestep=STEP)
UNET = dict(sample_size=32, block_out_channels=(16, 32), norm_num_groups=8, layers_per_block=1,
    down_block_types=("DownBlock2D", "AttnDownBlock2D"),
    up_block_types=("AttnUpBlock2D", "UpBlock2D"))
tiny("UNet2DModel", PIXELS, UNET)
tiny("UNet2DModel (class labels)", PIXELS | dict(class_labels=new.tensor([3])), UNET | dict(
    down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"), num_class_embeds=10,
    up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    resnet_time_scale_shift="scale_shift"))
# skips of the image itself and smoothed resampling, as in score-sde-ve
tiny("UNet2DModel (NCSN++)", PIXELS | dict(timestep=new.tensor([10.0])), dict(sample_size=32,
    block_out_channels=(32, 32, 32), layers_per_block=1, attention_head_dim=None,
    down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D", "SkipDownBlock2D"),
    up_block_types=("SkipUpBlock2D", "AttnSkipUpBlock2D", "SkipUpBlock2D"), norm_num_groups=None,
    time_embedding_type="fourier", mid_block_scale_factor=2**0.5, freq_shift=0))
full("ddpm-church-256", "UNet2DModel", dict(sample=new.normal(1, 3, 256, 256)),
    networks.DDPM_CHURCH_256)
# UNet2DConditionModel, with the blocks of Stable Diffusion
NAME = "UNet2DConditionModel"
CALL = dict(sample=new.normal(1, 4, 32, 32), timestep=STEP, encoder_hidden_states=new.words(24))
IMAGE = dict(encoder_hidden_states=None, added_cond_kwargs=dict(image_embeds=new.normal(1, 32)))
CONDITION = dict(sample_size=32, block_out_channels=(16, 32), layers_per_block=1,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=24,
    attention_head_dim=8, norm_num_groups=8)
# with the blocks of DeepFloyd-IF and Kandinsky 2
PIXEL_CASCADE = CONDITION | dict(
    down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
    resnet_time_scale_shift="scale_shift")


def variant(name: str, inputs: dict[str, Any], config: dict[str, Any], **how: Any) -> None:
    """What differs from the plain one."""
    tiny(f"{NAME} ({name})", CALL | inputs, CONDITION | config, DILATE, **how)


tiny(NAME, CALL, CONDITION, DILATE)
variant("SDXL", dict(added_cond_kwargs=dict(text_embeds=new.normal(1, 32),
    time_ids=new.normal(1, 6))), dict(down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    attention_head_dim=(2, 4), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    transformer_layers_per_block=(1, 2), addition_embed_type="text_time", addition_time_embed_dim=8,
    use_linear_projection=True, projection_class_embeddings_input_dim=32 + 6 * 8))
# conditioned on an image embedding in place of text
variant("Kandinsky 2", IMAGE, PIXEL_CASCADE | dict(out_channels=8, addition_embed_type="image",
    encoder_hid_dim=32, encoder_hid_dim_type="image_proj"))
variant("DeepFloyd-IF", dict(sample=new.normal(1, 3, 32, 32)), PIXEL_CASCADE | dict(in_channels=3,
    out_channels=6, cross_attention_dim=32, encoder_hid_dim=24, encoder_hid_dim_type="text_proj",
    addition_embed_type="text", addition_embed_type_num_heads=2, cross_attention_norm="group_norm",
    resnet_skip_time_act=True, resnet_out_scale_factor=2**0.5, act_fn="gelu"))
variant("DeepFloyd-IF upscaler", dict(sample=new.normal(1, 6, 32, 32),
    class_labels=new.tensor([250.0])), PIXEL_CASCADE | dict(in_channels=6, out_channels=6,
    encoder_hid_dim=24, addition_embed_type="text", addition_embed_type_num_heads=2,
    class_embed_type="timestep", time_embedding_act_fn="gelu", time_embedding_dim=32,
    mid_block_scale_factor=2**0.5, act_fn="gelu"))
# the k-diffusion blocks of sd-x2-latent-upscaler
variant("latent upscaler", dict(sample=new.normal(1, 8, 32, 32), timestep_cond=new.normal(1, 16)),
    dict(in_channels=8, out_channels=5, block_out_channels=(32, 32, 64, 64), layers_per_block=2,
    down_block_types=("KDownBlock2D", *["KCrossAttnDownBlock2D"] * 3), mid_block_type=None,
    up_block_types=(*["KCrossAttnUpBlock2D"] * 3, "KUpBlock2D"), attention_head_dim=8,
    act_fn="gelu", norm_num_groups=None, conv_in_kernel=1, conv_out_kernel=1, time_cond_proj_dim=16,
    time_embedding_type="fourier", timestep_post_act="gelu", resnet_time_scale_shift="scale_shift",
    only_cross_attention=False, cross_attention_norm="layer_norm"))
variant("inpainting", dict(sample=new.normal(1, 9, 32, 32)), dict(in_channels=9))
# called as beside a ControlNet, whose outputs are images on every grid
variant("ControlNet residuals", dict(down_block_additional_residuals=(new.normal(1, 16, 32, 32),
    new.normal(1, 16, 32, 32), new.normal(1, 16, 16, 16), new.normal(1, 32, 16, 16)),
    mid_block_additional_residual=new.normal(1, 32, 16, 16)), {})


# the same network, altered
def chunked(model: Any) -> None:
    for module in model.modules():
        if hasattr(module, "set_chunk_feed_forward"):
            module.set_chunk_feed_forward(chunk_size=64, dim=1)


def with_lora(model: Any) -> None:
    for module in list(model.modules()):
        if hasattr(module, "to_q"):
            module.to_q, module.to_k = LoRA(module.to_q), LoRA(module.to_k)
            module.to_v, module.to_out[0] = LoRA(module.to_v), LoRA(module.to_out[0])


def with_ip_adapter(model: Any) -> None:
    """What ``load_ip_adapter`` sets up: keys and values of image tokens beside those of text."""
    processors: dict[str, Any] = {}
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


variant("fused qkv", {}, {}, prepare=methodcaller("fuse_qkv_projections"))
# softmax between two products, as without scaled_dot_product_attention
variant("plain attention", {}, {}, prepare=methodcaller("set_attn_processor", AttnProcessor()))
variant("sliced attention", {}, {}, prepare=methodcaller("set_attention_slice", 1))
variant("chunked feed-forward", {}, {}, prepare=chunked)
variant("FreeU", {}, {}, prepare=methodcaller("enable_freeu", s1=0.9, s2=0.2, b1=1.2, b2=1.4))
variant("LoRA", {}, {}, prepare=with_lora)
variant("IP-Adapter", dict(added_cond_kwargs=dict(image_embeds=[new.normal(1, 1, 32)])), {},
    prepare=with_ip_adapter)
full("stable-diffusion-1.5", NAME, dict(sample=new.normal(1, 4, 64, 64),
    encoder_hidden_states=new.words(768, 77)), networks.STABLE_DIFFUSION_15)
full("stable-diffusion-xl", f"{NAME} (SDXL)", dict(sample=new.normal(1, 4, 128, 128),
    encoder_hidden_states=new.words(2048, 77), added_cond_kwargs=dict(
    text_embeds=new.normal(1, 1280), time_ids=new.normal(1, 6))), networks.STABLE_DIFFUSION_XL)
full("kandinsky-2.2", f"{NAME} (Kandinsky 2)", dict(sample=new.normal(1, 4, 64, 64),
    added_cond_kwargs=dict(image_embeds=new.normal(1, 1280))), dict(sample_size=64,
    block_out_channels=(384, 768, 1152, 1536), layers_per_block=3,
    down_block_types=("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3),
    mid_block_type="UNetMidBlock2DSimpleCrossAttn", resnet_time_scale_shift="scale_shift",
    up_block_types=(*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"),
    cross_attention_dim=768, attention_head_dim=64, out_channels=8, addition_embed_type="image",
    encoder_hid_dim=1280, encoder_hid_dim_type="image_proj"))
# other UNets
tiny("DreamLiteUNetModel", CALL | dict(added_cond_kwargs=dict(time_ids=new.normal(1, 6))), dict(
    sample_size=32, block_out_channels=(16, 32, 32), cross_attention_dim=24, norm_num_groups=8,
    attention_head_dim=(2, 4, 4), layers_per_block=1, ff_mult=2, addition_embed_type="time",
    addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8,
    use_linear_projection=True), DILATE)
tiny("Kandinsky3UNet", CALL | dict(encoder_attention_mask=new.ones(1, 7)), dict(
    block_out_channels=(16, 16, 32, 32), time_embedding_dim=16, groups=4, attention_head_dim=8,
    layers_per_block=2, cross_attention_dim=16, encoder_hid_dim=24), DILATE)
# the prior, on latents of Stage C
tiny("StableCascadeUNet", dict(sample=new.normal(1, 4, 16, 16), timestep_ratio=new.tensor([0.3]),
    clip_text_pooled=new.normal(1, 1, 24), clip_text=new.words(24), clip_img=new.normal(1, 1, 12)),
    dict(in_channels=4, out_channels=4, conditioning_dim=16, block_out_channels=(16, 16),
    num_attention_heads=(2, 2), down_num_layers_per_block=(1, 1), up_num_layers_per_block=(1, 1),
    clip_text_in_channels=24, clip_text_pooled_in_channels=24, clip_image_in_channels=12,
    timestep_ratio_embedding_dim=8, switch_level=(False,)), DILATE)
# Stage B: conditioned on the latents of Stage C, which lie on a smaller grid
BLOCK = ("SDCascadeResBlock", "SDCascadeTimestepBlock")
tiny("StableCascadeUNet (decoder)", dict(sample=new.normal(1, 4, 32, 32),
    timestep_ratio=new.tensor([0.3]), clip_text_pooled=new.normal(1, 1, 24),
    effnet=new.normal(1, 4, 4, 4)), dict(in_channels=4, out_channels=4, patch_size=2,
    conditioning_dim=16, block_out_channels=(8, 16, 16), num_attention_heads=(-1, -1, 2),
    down_num_layers_per_block=(1, 1, 1), up_num_layers_per_block=(1, 1, 1),
    down_blocks_repeat_mappers=(1, 1, 1), up_blocks_repeat_mappers=(2, 2, 1),
    block_types_per_layer=(BLOCK, BLOCK, (*BLOCK, "SDCascadeAttnBlock")),
    clip_text_pooled_in_channels=24, effnet_in_channels=4, pixel_mapper_in_channels=3,
    timestep_ratio_embedding_dim=8, timestep_conditioning_type=("sca",), dropout=(0.0, 0.0, 0.1)),
    DILATE)
ADAPTER = dict(in_channels=3, channels=[8, 16, 16, 16], num_res_blocks=1, downscale_factor=4)
HINT = dict(x=new.uniform(1, 3, 64, 64))
tiny("T2IAdapter", HINT, ADAPTER | dict(adapter_type="full_adapter"))
tiny("T2IAdapter (XL)", HINT, ADAPTER | dict(adapter_type="full_adapter_xl"))
tiny("T2IAdapter (light)", HINT, ADAPTER | dict(adapter_type="light_adapter"))
UPSCALER = dict(in_channels=4, stage_channels=(16, 16, 8), num_pre_blocks=1, num_mid_blocks=1,
    num_post_blocks=1, num_x2_adapter_blocks=1)
LOW = dict(sample=new.normal(1, 4, 16, 16))
tiny("Kandinsky6SRLatentUpscalerBank", LOW, UPSCALER, wrap=partial(OneFrame, scale=2))
tiny("Kandinsky6SRLatentUpscalerBank (x4)", LOW, UPSCALER, wrap=partial(OneFrame, scale=4))
