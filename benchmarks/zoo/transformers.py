"""Transformers on images: latents [N, C, H, W] go in and out."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import get_2d_rotary_pos_embed, get_2d_rotary_pos_embed_lumina
from diffusers.models.unets.unet_dreamlite import DreamLiteAttnProcessor2_0
from torch import Tensor

from . import FULL, Row, full, tiny
from . import inputs as new
from .inputs import HEADS, LATENT, ONE_EACH, TWO_HEADS
from .unets import DILATE
from .wrapped import JoyEdit, JoyEditPlus, OneImage


def sharing_keys(model: Any) -> None:
    """The processor that DreamLite's UNet installs: two heads share one key and value."""
    for part in model.modules():
        if isinstance(part, Attention):
            part.set_processor(DreamLiteAttnProcessor2_0())


def with_tables(model: Any) -> None:
    """Z-Image makes those of its rotary embedding in its first call."""
    model.rope_embedder(torch.zeros(1, 3, dtype=torch.int32))


@new.later
def image_in_text(words: int, start: int, end: int, patches: int) -> Tensor:
    """OmniGen's mask: causal, but all of an image sees all of it."""
    total = words + 1 + patches
    mask = torch.ones(1, total, total).tril()
    mask[:, start:end, start:end] = 1
    mask[:, words + 1 :, words + 1 :] = 1
    return mask


rotary = new.later(get_2d_rotary_pos_embed)
rotary_lumina = new.later(get_2d_rotary_pos_embed_lumina)
BOOL = torch.bool

# a table: several columns a line
# fmt: off
IMAGE = dict(hidden_states=new.normal(1, 4, 16, 16))
LARGE = dict(hidden_states=new.normal(1, 4, 32, 32))
TEXT, TIME = dict(encoder_hidden_states=new.words(24)), dict(timestep=new.tensor([10]))
EARLY, LATE = dict(timestep=new.tensor([0.3])), dict(timestep=new.tensor([0.5]))
tiny("DiTTransformer2DModel", IMAGE | TIME | dict(class_labels=new.tensor([3])), HEADS | dict(
    sample_size=16, in_channels=4, out_channels=8, num_embeds_ada_norm=10), DILATE)
full("dit-xl-2-256", "DiTTransformer2DModel", LARGE, dict(sample_size=32, out_channels=8))
tiny("PixArtTransformer2DModel", IMAGE | TEXT | dict(encoder_attention_mask=new.first(3, 7)) |
    TIME | dict(added_cond_kwargs=dict(resolution=None, aspect_ratio=None)), HEADS | dict(
    sample_size=16, cross_attention_dim=32, caption_channels=24, use_additional_conditions=False),
    DILATE)
full("pixart-sigma-1024", "PixArtTransformer2DModel", dict(hidden_states=new.normal(1, 4, 128, 128),
    encoder_hidden_states=new.words(4096, 300), encoder_attention_mask=new.first(150, 300)), dict(
    sample_size=128, caption_channels=4096, interpolation_scale=2, use_additional_conditions=False))
# the block of a UNet, on features
tiny("Transformer2DModel", dict(hidden_states=new.normal(1, 16, 16, 16)) | TEXT, dict(
    num_attention_heads=2, attention_head_dim=8, in_channels=16, num_layers=2, norm_num_groups=8,
    cross_attention_dim=24), DILATE)
# with the processor that the UNet around it installs
tiny("DreamLiteTransformer2DModel", dict(hidden_states=new.normal(1, 32, 16, 16)) | TEXT, HEADS |
    dict(in_channels=32, norm_num_groups=8, cross_attention_dim=24, use_linear_projection=True,
    qk_norm="rms_norm", num_kv_heads=1, ff_mult=3), DILATE, prepare=sharing_keys)
tiny("SanaTransformer2DModel", IMAGE | TEXT | dict(encoder_attention_mask=new.first(3, 7)) | TIME,
    LATENT | dict(num_attention_heads=2, attention_head_dim=8, num_layers=2,
    num_cross_attention_heads=2, cross_attention_head_dim=8, cross_attention_dim=16,
    caption_channels=24, sample_size=16), DILATE)
full("sana-1600m-1024", "SanaTransformer2DModel", dict(hidden_states=new.normal(1, 32, 32, 32),
    encoder_hidden_states=new.words(2304, 300), encoder_attention_mask=new.first(150, 300)), dict(
    in_channels=32, caption_channels=2304, sample_size=32))
# four blocks: the last one is joined to the first one by a skip
tiny("HunyuanDiT2DModel", LARGE | dict(timestep=new.tensor([10.0]),
    encoder_hidden_states=new.words(24, 4), text_embedding_mask=new.ones(1, 4),
    encoder_hidden_states_t5=new.words(16, 5), text_embedding_mask_t5=new.ones(1, 5),
    image_rotary_emb=rotary(16, ((0, 0), (16, 16)), (16, 16)),
    image_meta_size=new.tensor([[1024.0, 1024.0, 1024.0, 1024.0, 0.0, 0.0]]),
    style=new.tensor([0])), TWO_HEADS | dict(in_channels=4, patch_size=2, sample_size=32,
    num_layers=4, hidden_size=32, cross_attention_dim=24, cross_attention_dim_t5=16,
    pooled_projection_dim=8, text_len=4, text_len_t5=5), DILATE)
FULL["hunyuan-dit-1.2"] = Row("HunyuanDiT2DModel", dict(hidden_states=new.normal(1, 4, 128, 128),
    timestep=new.tensor([10.0]), encoder_hidden_states=new.words(1024, 77),
    text_embedding_mask=new.ones(1, 77), encoder_hidden_states_t5=new.words(2048, 256),
    text_embedding_mask_t5=new.ones(1, 256),
    image_rotary_emb=rotary(88, ((0, 0), (64, 64)), (64, 64))), dict(in_channels=4, patch_size=2,
    sample_size=128, num_layers=40, num_attention_heads=16, attention_head_dim=88, hidden_size=1408,
    mlp_ratio=4.3637, cross_attention_dim=1024, cross_attention_dim_t5=2048,
    pooled_projection_dim=1024, text_len=77, text_len_t5=256,
    use_style_cond_and_image_meta_size=False), DILATE)
tiny("LuminaNextDiT2DModel", IMAGE | EARLY | TEXT | dict(encoder_mask=new.first(4, 7),
    image_rotary_emb=rotary_lumina(8, 64, 64), cross_attention_kwargs={}), dict(sample_size=16,
    hidden_size=32, num_layers=2, num_attention_heads=4, num_kv_heads=2, multiple_of=16,
    cross_attention_dim=24), DILATE)
tiny("Lumina2Transformer2DModel", IMAGE | EARLY | TEXT | dict(
    encoder_attention_mask=new.ones(1, 7, dtype=BOOL)), dict(sample_size=16, in_channels=4,
    hidden_size=48, num_layers=2, num_refiner_layers=1, num_attention_heads=4, num_kv_heads=2,
    multiple_of=16, axes_dim_rope=(4, 4, 4), axes_lens=(64, 32, 32), cap_feat_dim=24), DILATE)
COGVIEW_CALL = IMAGE | TEXT | TIME | dict(original_size=new.tensor([[128.0, 128.0]]),
    target_size=new.tensor([[128.0, 128.0]]), crop_coords=new.zeros(1, 2))
COGVIEW = LATENT | dict(num_layers=2, attention_head_dim=8, num_attention_heads=4,
    text_embed_dim=24, time_embed_dim=16, condition_dim=8, pos_embed_max_size=16, sample_size=16)
tiny("CogView3PlusTransformer2DModel", COGVIEW_CALL, COGVIEW, DILATE)
tiny("CogView4Transformer2DModel", COGVIEW_CALL, COGVIEW | dict(rope_axes_dim=(16, 16)), DILATE)
full("cogview4-6b", "CogView4Transformer2DModel", dict(hidden_states=new.normal(1, 16, 128, 128),
    encoder_hidden_states=new.words(4096, 224), original_size=new.tensor([[1024.0, 1024.0]]),
    target_size=new.tensor([[1024.0, 1024.0]])), dict(num_layers=28, attention_head_dim=128,
    num_attention_heads=32))
tiny("UVit2DModel", dict(input_ids=new.integers(1, 32, (1, 16, 16)),
    encoder_hidden_states=new.words(8), pooled_text_emb=new.normal(1, 8),
    micro_conds=new.tensor([[512.0, 512.0, 0.0, 0.0, 6.0]])), dict(hidden_size=16, cond_embed_dim=8,
    micro_cond_encode_dim=2, micro_cond_embed_dim=10, encoder_hidden_size=8, vocab_size=34,
    codebook_size=32, in_channels=8, block_out_channels=16, num_res_blocks=1, block_num_heads=2,
    num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, downsample=True,
    upsample=True), {"grids": {"input_ids": (16, 16)}})
full("amused-512", "UVit2DModel", dict(input_ids=new.integers(1, 8192, (1, 32, 32)),
    encoder_hidden_states=new.words(768, 77), pooled_text_emb=new.normal(1, 768)), dict(
    cond_embed_dim=768, encoder_hidden_size=768, codebook_size=8192, sample_size=32,
    downsample=True, upsample=True), {"grids": {"input_ids": (32, 32)}})
# the second block has the second attention of Stable Diffusion 3.5
tiny("SD3Transformer2DModel", LARGE | TEXT | dict(pooled_projections=new.normal(1, 16)) | TIME,
    LATENT | dict(sample_size=32, num_layers=3, attention_head_dim=8, num_attention_heads=4,
    joint_attention_dim=24, caption_projection_dim=32, pooled_projection_dim=16,
    pos_embed_max_size=16, dual_attention_layers=(1,), qk_norm="rms_norm"), DILATE)
full("stable-diffusion-3-medium", "SD3Transformer2DModel", dict(
    hidden_states=new.normal(1, 16, 128, 128), encoder_hidden_states=new.words(4096, 333),
    pooled_projections=new.normal(1, 2048)), dict(sample_size=128, in_channels=16, num_layers=24,
    num_attention_heads=24, joint_attention_dim=4096, caption_projection_dim=1536,
    pooled_projection_dim=2048, pos_embed_max_size=192))
tiny("AuraFlowTransformer2DModel", LARGE | TEXT | EARLY, TWO_HEADS | dict(sample_size=32,
    num_mmdit_layers=2, num_single_dit_layers=2, joint_attention_dim=24, caption_projection_dim=32,
    pos_embed_max_size=256), DILATE)
full("aura-flow-0.3", "AuraFlowTransformer2DModel", dict(hidden_states=new.normal(1, 4, 128, 128),
    encoder_hidden_states=new.words(2048, 256)), dict(joint_attention_dim=2048,
    pos_embed_max_size=9216))
tiny("ZImageTransformer2DModel", dict(latents=new.normal(1, 4, 32, 32)) | EARLY | dict(
    text=new.words(24, 32)), dict(in_channels=4, dim=32, n_layers=2, n_refiner_layers=1, n_heads=2,
    n_kv_heads=2, cap_feat_dim=24, axes_dims=[8, 4, 4], axes_lens=[256, 32, 32]), DILATE,
    prepare=with_tables, wrap=OneImage)
full("z-image-turbo", "ZImageTransformer2DModel", dict(latents=new.normal(1, 16, 128, 128),
    text=new.words(2560, 128)), dict(in_channels=16, cap_feat_dim=2560))
# with an image of 8x8 latents in the text; attention is causal outside of the images
tiny("OmniGenTransformer2DModel", IMAGE | EARLY | dict(input_ids=new.integers(1, 100, (1, 24)),
    input_img_latents=[new.normal(1, 4, 8, 8)], input_image_sizes={0: [[4, 20]]},
    attention_mask=image_in_text(24, 4, 20, 64), position_ids=new.batched(new.arange(89))), dict(
    hidden_size=32, num_attention_heads=4, num_key_value_heads=4, intermediate_size=48,
    num_layers=2, pad_token_id=0, vocab_size=100, time_step_dim=8, pos_embed_max_size=16,
    rope_scaling={"long_factor": [1, 2, 3, 4], "short_factor": [1, 2, 3, 4]}), DILATE |
    {"grids": {"input_img_latents[0]": None}})
# three blocks, of which the second reads the text as well; features of two layers of its encoder
tiny("BriaFibo2Transformer2DModel", LARGE | LATE | dict(
    encoder_hidden_states=new.normal(1, 2, 7, 24)), dict(in_channels=4, patch_size=2, dim=32,
    n_layers=3, n_refiner_layers=1, n_heads=2, cap_feat_dim=24, injection_layer_ids=(1,),
    perceiver_num_layers=1, min_num_gist_tokens=4, max_num_gist_tokens=8, gist_step=4,
    gist_min_text_len=4, gist_max_text_len=16, axes_dims=(4, 6, 6), axes_lens=(32, 32, 32)),
    DILATE | {"grids": {"encoder_hidden_states": None}})
tiny("ErnieImageTransformer2DModel", dict(hidden_states=new.normal(1, 8, 8, 8),
    timestep=new.tensor([500.0]), text_bth=new.words(24), text_lens=new.tensor([5])), dict(
    hidden_size=32, num_attention_heads=2, num_layers=2, ffn_hidden_size=64, in_channels=8,
    out_channels=8, patch_size=1, text_in_dim=24, rope_axes_dim=(4, 6, 6)), DILATE)
tiny("GlmImageTransformer2DModel", IMAGE | TEXT | dict(prior_token_id=new.integers(0, 32, (1, 64)),
    prior_token_drop=new.zeros(1, 64, dtype=BOOL), timestep=new.tensor([500.0]),
    target_size=new.tensor([[128.0, 128.0]]), crop_coords=new.zeros(1, 2)), HEADS | LATENT | dict(
    patch_size=2, text_embed_dim=24, time_embed_dim=16, condition_dim=8,
    prior_vq_quantizer_codebook_size=32), DILATE)
# every image token goes to two of four experts: how many an expert gets is data
tiny("HiDreamImageTransformer2DModel", IMAGE | dict(timesteps=new.tensor([500.0]),
    encoder_hidden_states_t5=new.words(24), encoder_hidden_states_llama3=new.normal(2, 1, 7, 24),
    pooled_embeds=new.normal(1, 12)), ONE_EACH | dict(patch_size=2, in_channels=4,
    caption_channels=[24, 24], text_emb_dim=12, num_routed_experts=4, num_activated_experts=2,
    axes_dims_rope=(4, 6, 6), max_resolution=(16, 16), llama_layers=[0, 1]), DILATE |
    {"grids": {"encoder_hidden_states_llama3": None}})
HUNYUAN_CALL = dict(hidden_states=new.normal(1, 8, 16, 16), timestep=new.tensor([500.0]),
    encoder_hidden_states=new.words(24), encoder_attention_mask=new.first(5, 7, BOOL))
HUNYUAN = ONE_EACH | dict(in_channels=8, out_channels=8, num_refiner_layers=1, patch_size=(1, 1),
    text_embed_dim=24, rope_axes_dim=(8, 8))
# one text encoder, as it is by default
tiny("HunyuanImageTransformer2DModel", HUNYUAN_CALL, HUNYUAN, DILATE)
# the pipeline's: boolean masks pick the tokens of both, and their number depends on values
tiny("HunyuanImageTransformer2DModel (two text encoders)", HUNYUAN_CALL | dict(
    encoder_hidden_states_2=new.words(12, 5), encoder_attention_mask_2=new.first(3, 5, BOOL)),
    HUNYUAN | dict(text_embed_2_dim=12), DILATE)
tiny("PRXTransformer2DModel", IMAGE | LATE | TEXT | dict(attention_mask=new.first(5, 7, BOOL)),
    dict(in_channels=4, patch_size=2, context_in_dim=24, hidden_size=32, num_heads=2, depth=2,
    axes_dim=[8, 8]), DILATE)
JOY_CALL = IMAGE | dict(reference=new.normal(1, 4, 16, 16), timestep=new.tensor([500.0])) | TEXT
JOY = dict(patch_size=[1, 2, 2], in_channels=4, hidden_size=32, num_attention_heads=2, text_dim=24,
    num_layers=2, rope_dim_list=[4, 6, 6])
tiny("JoyImageEditTransformer3DModel", JOY_CALL, JOY, DILATE, wrap=JoyEdit)
tiny("JoyImageEditPlusTransformer3DModel", JOY_CALL | dict(
    encoder_hidden_states_mask=new.first(5, 7)), JOY, DILATE | {"grids": {"reference": None}},
    wrap=JoyEditPlus)
