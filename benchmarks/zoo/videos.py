"""UNets and transformers on videos [N, C, T, H, W]."""

from __future__ import annotations

from functools import partial
from typing import Any

import diffusers
import torch
from diffusers.models.embeddings import get_3d_rotary_pos_embed, get_3d_rotary_pos_embed_allegro
from torch import Tensor

from . import inputs as new
from . import tiny
from .inputs import HEADS, LATENT, TWO_HEADS
from .unets import DILATE
from .wrapped_videos import ChannelsLast, Omni, Packed, PackedSequence, Reference, Refiner

FRAMES, SIZE = 3, 16
SIDE = SIZE // 2
BOOL = torch.bool
rotary = new.later(get_3d_rotary_pos_embed)


def text(width: int, count: int = 6) -> partial[Any]:
    return new.words(width, count)


def video(channels: int, frames: int = FRAMES) -> partial[Any]:
    """Latents of a video."""
    return new.normal(1, channels, frames, SIZE, SIZE)


@new.later
def frames_first(channels: int) -> Tensor:
    """A video [N, T, C, H, W]."""
    return torch.randn(1, channels, FRAMES, SIZE, SIZE).transpose(1, 2).contiguous()


@new.later
def repeated(spec: Any, times: int) -> Tensor:
    """The same prompt for each frame."""
    result: Tensor = spec().repeat(times, 1, 1)
    return result


@new.later
def runs(*runs: tuple[int, int]) -> Tensor:
    """Each number as often as the one behind it says."""
    return torch.tensor([number for number, count in runs for _ in range(count)])


@new.later
def key_frame() -> Tensor:
    """A mask of the first frame."""
    is_first = (torch.arange(FRAMES) == 0).float()
    return is_first[:, None, None].expand(1, 1, -1, SIZE, SIZE)


@new.later
def rotary_allegro() -> Any:
    *angles, times, rows, columns = get_3d_rotary_pos_embed_allegro(
        embed_dim=24,
        crops_coords=((0, 0), (SIDE, SIDE)),
        grid_size=(SIDE, SIDE),
        temporal_size=FRAMES,
        interpolation_scale=(2.2, 2.0, 2.0),
    )
    places = torch.cartesian_prod(times.long(), rows.long(), columns.long()).T[:, None]
    return tuple(angles), tuple(places.contiguous())


@new.later
def rotary_ltx2(config: dict[str, Any]) -> Any:
    model = diffusers.SanaWMLTX2RefinerTransformer3DModel(**config)
    return model.build_rotary_emb_for_absolute_positions(
        1, list(range(FRAMES)), SIZE, SIZE, torch.device("cpu"), fps=24.0
    )


@new.later
def camera() -> Tensor:
    """A pose and four numbers of the lens for each frame."""
    poses = torch.eye(4).repeat(1, FRAMES, 1, 1)
    poses[..., 2, 3] = 0.1 * torch.arange(FRAMES)
    lens = torch.tensor([16.0, 16.0, 8.0, 8.0]).expand(1, FRAMES, 4)
    return torch.cat([poses.flatten(2), lens], dim=-1)


# a table: several columns a line
# fmt: off
STEP, FLOAT_STEP = dict(timestep=new.tensor([500])), dict(timestep=new.tensor([500.0]))
LATENTS = dict(hidden_states=video(4))
VALID = dict(encoder_attention_mask=new.ones(1, 6, dtype=BOOL))
TEXT16, TEXT24 = dict(encoder_hidden_states=text(16)), dict(encoder_hidden_states=text(24))
# UNets
CALL = dict(sample=video(4)) | STEP | TEXT24
UNET = dict(sample_size=SIZE, block_out_channels=(16, 32), layers_per_block=1,
    down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
    up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"), norm_num_groups=8, cross_attention_dim=24,
    attention_head_dim=8)
tiny("UNet3DConditionModel", CALL, UNET, DILATE)
tiny("I2VGenXLUNet", dict(sample=video(4)) | STEP | dict(fps=new.tensor([16]),
    image_latents=video(4), image_embeddings=new.normal(1, 24)) | TEXT24, UNET, DILATE)
# AnimateDiff
REPEATED = CALL | dict(encoder_hidden_states=repeated(text(24), FRAMES))
tiny("UNetMotionModel", REPEATED, dict(sample_size=SIZE, block_out_channels=(16, 32),
    layers_per_block=1, norm_num_groups=8,
    down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), cross_attention_dim=24,
    up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"), num_attention_heads=2,
    motion_num_attention_heads=2), DILATE)
# Stable Video Diffusion
tiny("UNetSpatioTemporalConditionModel", dict(sample=frames_first(8)) | STEP | dict(
    encoder_hidden_states=text(24, 1), added_time_ids=new.tensor([[6.0, 127.0, 0.02]])), dict(
    sample_size=SIZE, block_out_channels=(32, 64), layers_per_block=1, num_attention_heads=8,
    down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
    up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    cross_attention_dim=24, addition_time_embed_dim=16, projection_class_embeddings_input_dim=48,
    num_frames=FRAMES), DILATE)
# SparseCtrl with RGB: the condition is a video of latents with a mask of its key frames
tiny("SparseControlNetModel", REPEATED | dict(controlnet_cond=video(4),
    conditioning_mask=key_frame()), dict(block_out_channels=(16, 32), layers_per_block=1,
    norm_num_groups=8, cross_attention_dim=24,
    down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"), attention_head_dim=8,
    motion_num_attention_heads=2), DILATE | {"grids": {"conditioning_mask": None}},
    edit="controlnet_cond")
# transformers
tiny("TransformerTemporalModel", dict(hidden_states=new.normal(FRAMES, 16, SIZE, SIZE),
    num_frames=FRAMES), TWO_HEADS | dict(in_channels=16, norm_num_groups=8,
    positional_embeddings="sinusoidal", num_positional_embeddings=FRAMES))
# CogVideoX-5B's way: rotary positions, the prompt before the video in one sequence
COGVIDEOX_CALL = dict(hidden_states=frames_first(4)) | TEXT24 | STEP | dict(
    image_rotary_emb=rotary(embed_dim=16, crops_coords=((0, 0), (SIDE, SIDE)),
    grid_size=(SIDE, SIDE), temporal_size=FRAMES))
COGVIDEOX = LATENT | dict(attention_head_dim=16, time_embed_dim=16, text_embed_dim=24, num_layers=2,
    sample_width=SIZE, sample_height=SIZE, sample_frames=9, max_text_seq_length=6,
    use_rotary_positional_embeddings=True)
tiny("CogVideoXTransformer3DModel", COGVIDEOX_CALL, COGVIDEOX | dict(num_attention_heads=2))
tiny("ConsisIDTransformer3DModel", COGVIDEOX_CALL | dict(id_cond=new.normal(1, 8),
    id_vit_hidden=[text(8, 4)] * 5), COGVIDEOX | dict(num_attention_heads=3, is_train_face=True,
    cross_attn_interval=1, cross_attn_dim_head=8, cross_attn_num_heads=2, LFE_id_dim=8,
    LFE_vit_dim=8, LFE_depth=5, LFE_dim_head=8, LFE_num_heads=2, LFE_num_id_token=2,
    LFE_num_querie=4, LFE_output_dim=32, LFE_ff_mult=2, LFE_num_scale=5))
tiny("LatteTransformer3DModel", LATENTS | STEP | TEXT24, HEADS | dict(in_channels=4, out_channels=8,
    cross_attention_dim=32, attention_bias=True, sample_size=SIZE, patch_size=2,
    activation_fn="gelu-approximate", num_embeds_ada_norm=1000, norm_type="ada_norm_single",
    norm_elementwise_affine=False, norm_eps=1e-6, caption_channels=24, video_length=FRAMES))
# no edit changes what is padding
tiny("AllegroTransformer3DModel", LATENTS | TEXT24 | STEP | dict(
    attention_mask=new.ones(1, FRAMES, SIZE, SIZE), encoder_attention_mask=new.ones(1, 6),
    image_rotary_emb=rotary_allegro()), LATENT | dict(num_attention_heads=2, attention_head_dim=24,
    num_layers=2, cross_attention_dim=48, sample_height=SIZE, sample_width=SIZE,
    sample_frames=FRAMES, caption_channels=24), {"grids": {"attention_mask": None}})
tiny("MochiTransformer3DModel", LATENTS | TEXT16 | STEP | VALID, dict(num_attention_heads=2,
    attention_head_dim=8, num_layers=3, pooled_projection_dim=16, in_channels=4, text_embed_dim=16,
    time_embed_dim=8, max_sequence_length=6))
tiny("LTXVideoTransformer3DModel", dict(hidden_states=video(8)) | TEXT24 | STEP | VALID, dict(
    in_channels=8, out_channels=8, num_attention_heads=4, attention_head_dim=8,
    cross_attention_dim=32, num_layers=2, caption_channels=24), wrap=Packed)
LTX2 = HEADS | LATENT | dict(cross_attention_dim=32, audio_in_channels=4, audio_out_channels=4,
    audio_num_attention_heads=2, audio_attention_head_dim=8, audio_cross_attention_dim=16,
    caption_channels=24, rope_double_precision=False)
tiny("LTX2VideoTransformer3DModel", LATENTS | dict(audio_hidden_states=text(4, 9)) | TEXT24 | dict(
    audio_encoder_hidden_states=text(24)) | FLOAT_STEP | VALID | dict(audio_num_frames=9), LTX2,
    wrap=Packed)
tiny("SanaWMLTX2RefinerTransformer3DModel", LATENTS | TEXT24 | dict(
    timestep=new.constant((1, FRAMES * SIZE * SIZE), 500.0), video_rotary_emb=rotary_ltx2(LTX2),
    encoder_attention_mask=new.ones(1, 6)), LTX2, wrap=Refiner)
WAN_CALL = LATENTS | STEP | TEXT16
HELIOS = LATENT | dict(num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=32,
    ffn_dim=48, num_layers=2)
WAN = HELIOS | dict(rope_max_seq_len=32)
tiny("WanTransformer3DModel", WAN_CALL, WAN)
tiny("WanVACETransformer3DModel", WAN_CALL | dict(control_hidden_states=video(12)), WAN | dict(
    vace_layers=[0, 1], vace_in_channels=12))
tiny("SkyReelsV2Transformer3DModel", WAN_CALL, WAN)
# the frames left by ChronoEdit's last steps: first and last
tiny("ChronoEditTransformer3DModel", WAN_CALL | dict(hidden_states=video(4, 2),
    encoder_hidden_states_image=text(8, 5)), WAN | dict(image_dim=8, added_kv_proj_dim=24))
# the face is cut out of other pictures
tiny("WanAnimateTransformer3DModel", WAN_CALL | dict(hidden_states=video(12),
    encoder_hidden_states_image=text(16, 5), pose_hidden_states=video(4, FRAMES - 1),
    face_pixel_values=new.normal(1, 3, 5, 16, 16)), WAN | dict(in_channels=12, latent_channels=4,
    image_dim=16, motion_encoder_size=16, motion_style_dim=8,
    motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16}, motion_dim=4, motion_encoder_dim=16,
    face_encoder_hidden_dim=16, face_encoder_num_heads=2, inject_face_latents_blocks=2),
    {"grids": {"face_pixel_values": None}})
tiny("WanAnimate2Transformer3DModel", LATENTS | dict(prompt=text(16), timestep=new.tensor([1.0])),
    dict(text_len=8, in_dim=8, dim=24, ffn_dim=48, freq_dim=32, text_dim=16, out_dim=4, num_heads=2,
    num_layers=2, use_img_emb=False, refer_offset_w=8), wrap=Reference)
ANYFLOW_CALL = dict(hidden_states=frames_first(4), timestep=new.constant((1, FRAMES), 500.0),
    r_timestep=new.constant((1, FRAMES), 250.0)) | TEXT16
tiny("AnyFlowTransformer3DModel", ANYFLOW_CALL, WAN)
tiny("AnyFlowFARTransformer3DModel", ANYFLOW_CALL | dict(chunk_partition=[1, 2]), WAN)
# with a history of seven frames: long, mid and short
HISTORY = dict(latents_history_short=video(4, 1), latents_history_mid=video(4, 2),
    latents_history_long=video(4, 4))
tiny("HeliosTransformer3DModel", WAN_CALL | dict(
    indices_hidden_states=new.batched(new.arange(7.0, 10.0)),
    indices_latents_history_short=new.tensor([[6.0]]),
    indices_latents_history_mid=new.tensor([[4.0, 5.0]]),
    indices_latents_history_long=new.batched(new.arange(4.0))) | HISTORY, HELIOS | dict(
    rope_dim=(4, 4, 4)), {"grids": dict.fromkeys(HISTORY)})
HUNYUAN = LATENT | dict(num_attention_heads=2, attention_head_dim=10, num_layers=1, patch_size=2,
    text_embed_dim=16, rope_axes_dim=(2, 4, 4))
HUNYUAN_1 = HUNYUAN | dict(num_refiner_layers=1, num_single_layers=1, pooled_projection_dim=8)
HUNYUAN_CALL = LATENTS | STEP | TEXT16 | VALID | dict(pooled_projections=new.normal(1, 8))
GUIDANCE = dict(guidance=new.tensor([6000.0]))
tiny("HunyuanVideoTransformer3DModel", HUNYUAN_CALL | GUIDANCE, HUNYUAN_1)
tiny("HunyuanVideo15Transformer3DModel", LATENTS | FLOAT_STEP | TEXT16 | VALID | dict(
    encoder_hidden_states_2=text(8, 4), encoder_attention_mask_2=new.ones(1, 4, dtype=BOOL),
    image_embeds=text(12, 3)), HUNYUAN | dict(patch_size=1, num_refiner_layers=1,
    text_embed_2_dim=8, image_embed_dim=12, target_size=SIZE))
tiny("HunyuanVideoFramepackTransformer3DModel", HUNYUAN_CALL | dict(image_embeds=text(12, 3),
    indices_latents=new.arange(7, 10)) | GUIDANCE | dict(latents_clean=video(4, 1),
    indices_latents_clean=new.tensor([0]), latents_history_2x=video(4, 2),
    indices_latents_history_2x=new.tensor([1, 2]), latents_history_4x=video(4, 4),
    indices_latents_history_4x=new.arange(3, 7)), HUNYUAN_1 | dict(has_image_proj=True,
    image_proj_dim=12, has_clean_x_embedder=True))
tiny("MotifVideoTransformer3DModel", dict(hidden_states=video(9)) | STEP | TEXT16 | VALID, HUNYUAN |
    dict(in_channels=9, num_single_layers=2, num_decoder_layers=1,
    enable_text_cross_attention_dual=True, enable_text_cross_attention_single=True))
tiny("EasyAnimateTransformer3DModel", LATENTS | FLOAT_STEP | TEXT24, HEADS | LATENT | dict(
    patch_size=2, sample_width=SIZE, sample_height=SIZE, mmdit_layers=1, time_embed_dim=16,
    text_embed_dim=24))
KANDINSKY_SR = dict(time_dim=16, model_dim=24, ff_dim=32, num_visual_blocks=2, axes_dims=(4, 4, 4))
KANDINSKY = KANDINSKY_SR | dict(in_text_dim=16, in_text_dim2=8, num_text_blocks=1)
POOLED = dict(pooled_projections=new.normal(1, 8))
PROMPT = TEXT16 | FLOAT_STEP | POOLED
tiny("Kandinsky5Transformer3DModel", LATENTS | PROMPT | dict(
    visual_rope_pos=(new.arange(FRAMES), new.arange(SIDE), new.arange(SIDE)),
    text_rope_pos=new.arange(6)), KANDINSKY, wrap=ChannelsLast)
tiny("Kandinsky6Transformer3DModel", dict(hidden_states=video(9)) | TEXT16 | POOLED | PROMPT | dict(
    audio_hidden_states=text(4, 5)), KANDINSKY | dict(in_visual_dim=4, out_visual_dim=4,
    in_audio_dim=4, out_audio_dim=4), wrap=ChannelsLast)
tiny("Kandinsky6SRTransformer3DModel", dict(hidden_states=video(9, 2)) | FLOAT_STEP, KANDINSKY_SR |
    dict(in_visual_dim=4, out_visual_dim=8, patch_size=(1, 2, 2)), wrap=ChannelsLast)
# one sequence of six words, five sounds and the patches
tiny("MiniMaxH3Transformer3DModel", LATENTS | dict(audio_hidden_states=text(6, 5),
    encoder_hidden_states=text(16), timestep=new.tensor([0.7, 0.3]),
    timestep_indices=runs((0, 6), (1, 5), (0, 192)), token_tags=runs((1, 6), (2, 5), (0, 192)),
    position_ids=new.joined(new.diagonal(11, (1.0, 1.0, 1.0)),
    new.shifted(new.places(FRAMES, SIDE, SIDE), 6.0)), video_indices=new.arange(11, 203),
    audio_indices=new.arange(6, 11), text_indices=new.arange(6)), HEADS | dict(hidden_size=24,
    num_refiner_layers=1, ffn_dim=32, in_channels=4, audio_in_channels=6, text_dim=16, freq_dim=16,
    time_embed_hidden_dim=24, time_embed_dim=16, rope_freq_dim=2), wrap=PackedSequence)
tiny("SanaVideoTransformer3DModel", WAN_CALL, LATENT | dict(num_attention_heads=2,
    attention_head_dim=12, num_layers=2, num_cross_attention_heads=2, cross_attention_head_dim=12,
    cross_attention_dim=24, caption_channels=16, sample_size=SIZE, rope_max_seq_len=32))
# neither the prompt [N, 1, L, C] nor the rays of the camera are edited
tiny("SanaWMTransformer3DModel", LATENTS | dict(timestep=new.constant((1, 1, FRAMES), 500.0),
    encoder_hidden_states=new.batched(text(16)),
    encoder_attention_mask=new.ones(1, 6, dtype=torch.long), camera_conditions=camera(),
    chunk_plucker=video(8)), dict(in_channels=4, num_layers=2, hidden_size=32,
    num_attention_heads=2, softmax_every_n=2, linear_head_dim=16, caption_channels=16,
    mlp_ratio=2.0, chunk_plucker_channels=8, chunk_plucker_post_attn_blocks=2),
    {"grids": {"encoder_hidden_states": None, "chunk_plucker": None}})
# without the plane of padding, which needs torchvision
tiny("CosmosTransformer3DModel", LATENTS | FLOAT_STEP | dict(encoder_hidden_states=text(32),
    fps=30), HEADS | LATENT | dict(mlp_ratio=2, text_embed_dim=32, adaln_lora_dim=4,
    max_size=(4, 32, 32), concat_padding_mask=False))
tiny("Cosmos3OmniTransformer", LATENTS | dict(input_ids=new.arange(5)) | FLOAT_STEP, dict(
    head_dim=16, hidden_size=32, intermediate_size=64, latent_channel=4, patch_latent_dim=16,
    num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2, rope_axes_dim=(4, 2, 2),
    vocab_size=32), wrap=Omni)
