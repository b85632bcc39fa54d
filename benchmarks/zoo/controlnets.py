"""ControlNets: edited is the picture that they are called with, beside the one they steer by."""

from __future__ import annotations

import types
from typing import Any

import torch
from diffusers import ZImageControlNetModel, ZImageTransformer2DModel
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor
from torch.nn import functional

from . import inputs as new
from . import tiny
from .inputs import HEADS, LATENT, ONE_EACH, TWO_HEADS
from .unets import DILATE, STEP
from .wrapped import OneControl, OneFrameControl


def without_torchvision(_: Any) -> None:
    """Cosmos resizes with it; where it is not installed torch does."""

    def nearest(image: Tensor, size: list[int], interpolation: Any) -> Tensor:
        return functional.interpolate(image, size, mode="nearest")

    if not hasattr(controlnet_cosmos, "transforms"):
        controlnet_cosmos.transforms = types.SimpleNamespace(
            functional=types.SimpleNamespace(resize=nearest),
            InterpolationMode=types.SimpleNamespace(NEAREST="nearest"),
        )


def beside_a_transformer(**config: Any) -> Any:
    """Z-Image's ControlNet shares parts of the transformer that it steers."""
    shared = {"dim": 32, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    transformer = ZImageTransformer2DModel(
        **shared,
        in_channels=4,
        n_layers=1,
        cap_feat_dim=24,
        axes_dims=[4, 4, 8],
        axes_lens=[128, 32, 32],
    )
    model = ZImageControlNetModel(**shared, **config)
    model = ZImageControlNetModel.from_transformer(model, transformer)
    model.rope_embedder(torch.zeros(1, 3, dtype=torch.int32))  # makes tables in its first call
    return model


rotary = new.later(get_2d_rotary_pos_embed)

# a table: several columns a line
# fmt: off
LATENTS = dict(sample=new.normal(1, 4, 16, 16), timestep=STEP, encoder_hidden_states=new.words(24))
HINT = new.uniform(1, 3, 128, 128)
HINTED = LATENTS | dict(controlnet_cond=HINT)
BLOCKS = dict(block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=24,
    norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    conditioning_embedding_out_channels=(8, 8, 16, 16))
PLAIN = BLOCKS | dict(attention_head_dim=8)
tiny("ControlNetModel", HINTED, PLAIN, DILATE)
tiny("ControlNetModel (guess mode)", HINTED | dict(guess_mode=True), PLAIN, DILATE)
# the outputs are means over the picture, as of the ControlNet for shuffled images
tiny("ControlNetModel (pooled)", HINTED, PLAIN | dict(global_pool_conditions=True), DILATE)
tiny("ControlNetUnionModel", LATENTS | dict(controlnet_cond=[HINT, HINT],
    control_type=new.tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]), control_type_idx=[0, 3],
    added_cond_kwargs=dict(text_embeds=new.normal(1, 32), time_ids=new.normal(1, 6))), BLOCKS |
    dict(attention_head_dim=(2, 4), addition_embed_type="text_time", addition_time_embed_dim=8,
    projection_class_embeddings_input_dim=32 + 6 * 8, use_linear_projection=True,
    num_trans_channel=16, num_trans_head=2, num_proj_channel=16), DILATE)
tiny("UNetControlNetXSModel", HINTED, dict(sample_size=16,
    down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
    up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), block_out_channels=(16, 32),
    cross_attention_dim=24, num_attention_heads=2, norm_num_groups=8,
    ctrl_block_out_channels=(8, 8), ctrl_num_attention_heads=2, ctrl_max_norm_num_groups=4,
    ctrl_conditioning_embedding_out_channels=(8, 8, 16, 16)), DILATE)
tiny("CosmosControlNetModel", dict(controls_latents=new.normal(1, 16, 16, 16),
    latents=new.normal(1, 16, 16, 16), condition_mask=new.ones(1, 1, 16, 16),
    padding_mask=new.zeros(1, 1, 16, 16), timestep=new.tensor([0.5]),
    encoder_hidden_states=new.words(24)), TWO_HEADS | dict(n_controlnet_blocks=2,
    in_channels=16 + 1 + 1, latent_channels=16 + 1 + 1, model_channels=32, mlp_ratio=2,
    text_embed_dim=24, adaln_lora_dim=4, max_size=(4, 32, 32)),
    {"grids": {"condition_mask": None, "padding_mask": None}}, prepare=without_torchvision,
    wrap=OneFrameControl)
ON_TOKENS = {"grids": {"hidden_states": (16, 16), "controlnet_cond": (16, 16)}}
FLUX_CALL = dict(hidden_states=new.normal(1, 256, 16), controlnet_cond=new.normal(1, 256, 16),
    encoder_hidden_states=new.words(24), pooled_projections=new.normal(1, 12),
    timestep=new.tensor([0.5]), img_ids=new.places(1, 16, 16), txt_ids=new.zeros(7, 3))
FLUX = ONE_EACH | dict(in_channels=16, joint_attention_dim=24, pooled_projection_dim=12,
    axes_dims_rope=[4, 4, 8])
tiny("FluxControlNetModel", FLUX_CALL, FLUX, ON_TOKENS)
tiny("FluxControlNetModel (union)", FLUX_CALL | dict(controlnet_mode=new.tensor([[1]]),
    guidance=new.tensor([3.5])), FLUX | dict(num_mode=3, guidance_embeds=True), ON_TOKENS)
# steered by an image, which it packs itself; patches of it are a token of the latents
tiny("FluxControlNetModel (hint image)", FLUX_CALL | dict(controlnet_cond=HINT), FLUX | dict(
    conditioning_embedding_channels=16, patch_size=1), {"grids": {"hidden_states": (16, 16)}})
tiny("HunyuanDiT2DControlNetModel", dict(hidden_states=new.normal(1, 4, 32, 32),
    timestep=new.tensor([10.0]), controlnet_cond=new.normal(1, 4, 32, 32),
    encoder_hidden_states=new.words(24), text_embedding_mask=new.ones(1, 7),
    encoder_hidden_states_t5=new.words(24, 5), text_embedding_mask_t5=new.ones(1, 5),
    image_meta_size=new.normal(1, 6), style=new.tensor([0]),
    image_rotary_emb=rotary(16, ((0, 0), (16, 16)), (16, 16), output_type="pt")), TWO_HEADS | dict(
    sample_size=32, patch_size=2, in_channels=4, hidden_size=32, transformer_num_layers=6,
    cross_attention_dim=24, cross_attention_dim_t5=24, pooled_projection_dim=12, text_len=7,
    text_len_t5=5))
tiny("QwenImageControlNetModel", dict(hidden_states=new.normal(1, 256, 16),
    controlnet_cond=new.normal(1, 256, 16), encoder_hidden_states=new.words(24),
    timestep=new.tensor([0.5]), img_shapes=[[(1, 16, 16)]]), HEADS | dict(in_channels=16,
    out_channels=4, joint_attention_dim=24, axes_dims_rope=(4, 4, 8)), ON_TOKENS)
tiny("SanaControlNetModel", dict(hidden_states=new.normal(1, 4, 16, 16),
    encoder_hidden_states=new.words(24), timestep=new.tensor([10]),
    controlnet_cond=new.normal(1, 4, 16, 16), encoder_attention_mask=new.ones(1, 7)), LATENT | dict(
    num_layers=2, num_attention_heads=2, attention_head_dim=8, num_cross_attention_heads=2,
    cross_attention_head_dim=8, cross_attention_dim=16, caption_channels=24, sample_size=16))
SD3_CALL = dict(hidden_states=new.normal(1, 4, 32, 32), controlnet_cond=new.normal(1, 4, 32, 32),
    encoder_hidden_states=new.words(24), pooled_projections=new.normal(1, 12),
    timestep=new.tensor([10]))
SD3 = HEADS | LATENT | dict(sample_size=32, pooled_projection_dim=12, pos_embed_max_size=24,
    caption_projection_dim=32, joint_attention_dim=24)
tiny("SD3ControlNetModel", SD3_CALL, SD3)
# called with tokens that the transformer has embedded, and without text
tiny("SD3ControlNetModel (3.5 large)", SD3_CALL | dict(hidden_states=new.normal(1, 256, 32),
    encoder_hidden_states=None), SD3 | dict(joint_attention_dim=None, use_pos_embed=False,
    pos_embed_type=None), {"grids": {"hidden_states": (16, 16)}})
Z_IMAGE_CALL = dict(x=new.normal(1, 4, 32, 32), control_context=new.normal(1, 4, 32, 32),
    t=new.tensor([0.5]), cap_feats=new.normal(7, 24))
Z_IMAGE = dict(control_layers_places=[0, 1], control_refiner_layers_places=[0], control_in_dim=4,
    add_control_noise_refiner=None)
tiny("ZImageControlNetModel", Z_IMAGE_CALL, Z_IMAGE, make=beside_a_transformer, wrap=OneControl)
tiny("ZImageControlNetModel (2.1)", Z_IMAGE_CALL, Z_IMAGE | dict(
    add_control_noise_refiner="control_noise_refiner"), make=beside_a_transformer, wrap=OneControl)
