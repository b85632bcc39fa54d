"""Transformers on videos: the others."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AnyFlowFARTransformer3DModel,
    AnyFlowTransformer3DModel,
    EasyAnimateTransformer3DModel,
    HeliosTransformer3DModel,
    Kandinsky5Transformer3DModel,
    Kandinsky6SRTransformer3DModel,
    Kandinsky6Transformer3DModel,
    MiniMaxH3Transformer3DModel,
    MotifVideoTransformer3DModel,
    SanaVideoTransformer3DModel,
    SanaWMLTX2RefinerTransformer3DModel,
    SanaWMTransformer3DModel,
    WanAnimateTransformer3DModel,
)
from torch import Tensor, nn

from benchmarks.zoo_noise import randomised

from . import Example, tiny
from .video_transformers import FRAMES, HUNYUAN, LTX2, SIZE, WAN, text, video, wan_inputs


class ChannelsLast(nn.Module):
    """A transformer on [N, T, H, W, C], called with a video [N, C, T, H, W]."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states: Tensor, **inputs: Any) -> Tensor:
        video = hidden_states.permute(0, 2, 3, 4, 1)
        out = self.transformer(hidden_states=video, **inputs).sample
        return out.permute(0, 4, 1, 2, 3)


class PackedSequence(nn.Module):
    """MiniMax H3 on its one sequence of text, sound and patches of the video."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        channels, frames, height, width = hidden_states.shape[1:]
        patches = hidden_states.unflatten(4, (width // 2, 2)).unflatten(3, (height // 2, 2))
        rows = patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        rows, sound = self.transformer(hidden_states=rows, return_dict=False, **inputs)
        patches = rows.unflatten(2, (channels, 2, 2))
        patches = patches.unflatten(1, (frames, height // 2, width // 2))
        out = patches.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)
        return out, sound


class Refiner(nn.Module):
    """Sana's refiner on one block of frames, packed into tokens."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, hidden_states: Tensor, **inputs: Any) -> Tensor:
        tokens = hidden_states.flatten(2).transpose(1, 2)
        out = self.transformer(hidden_states=tokens, **inputs).sample
        return out.transpose(1, 2).unflatten(2, hidden_states.shape[2:])


def anyflow_inputs() -> dict[str, Any]:
    return {
        "hidden_states": video(4).transpose(1, 2).contiguous(),
        "timestep": torch.full((1, FRAMES), 500.0),
        "r_timestep": torch.full((1, FRAMES), 250.0),
        "encoder_hidden_states": text(16),
    }


@tiny("AnyFlowTransformer3DModel")
def anyflow() -> Example:
    model = AnyFlowTransformer3DModel(**WAN)
    return Example(randomised(model), anyflow_inputs(), edit="hidden_states")


@tiny("AnyFlowFARTransformer3DModel")
def anyflow_far() -> Example:
    model = AnyFlowFARTransformer3DModel(**WAN)
    inputs = {**anyflow_inputs(), "chunk_partition": [1, 2]}
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("EasyAnimateTransformer3DModel")
def easyanimate() -> Example:
    model = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        patch_size=2,
        sample_width=SIZE,
        sample_height=SIZE,
        num_layers=2,
        mmdit_layers=1,
        time_embed_dim=16,
        text_embed_dim=24,
    )
    inputs = {
        "hidden_states": video(4),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": text(24),
    }
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("HeliosTransformer3DModel")
def helios() -> Example:
    """With a history of seven frames: long, mid and short."""
    sizes = {name: value for name, value in WAN.items() if name != "rope_max_seq_len"}
    model = HeliosTransformer3DModel(**sizes, rope_dim=(4, 4, 4))
    inputs = {
        **wan_inputs(),
        "indices_hidden_states": torch.arange(7.0, 10.0)[None],
        "indices_latents_history_short": torch.tensor([[6.0]]),
        "indices_latents_history_mid": torch.tensor([[4.0, 5.0]]),
        "indices_latents_history_long": torch.arange(4.0)[None],
        "latents_history_short": video(4, 1),
        "latents_history_mid": video(4, 2),
        "latents_history_long": video(4, 4),
    }
    history = [name for name in inputs if name.startswith("latents_history")]
    options = {"grids": dict.fromkeys(history)}
    return Example(randomised(model), inputs, edit="hidden_states", options=options)


@tiny("Kandinsky5Transformer3DModel")
def kandinsky_5() -> Example:
    model = Kandinsky5Transformer3DModel(
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
    )
    inputs = {
        "hidden_states": video(4),
        "encoder_hidden_states": text(16),
        "timestep": torch.tensor([500.0]),
        "pooled_projections": torch.randn(1, 8),
        "visual_rope_pos": tuple(torch.arange(n) for n in (FRAMES, SIZE // 2, SIZE // 2)),
        "text_rope_pos": torch.arange(6),
    }
    return Example(randomised(ChannelsLast(model)), inputs, edit="hidden_states")


@tiny("Kandinsky6Transformer3DModel")
def kandinsky_6() -> Example:
    model = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        in_audio_dim=4,
        out_audio_dim=4,
    )
    inputs = {
        "hidden_states": video(9),
        "encoder_hidden_states": text(16),
        "pooled_projections": torch.randn(1, 8),
        "timestep": torch.tensor([500.0]),
        "audio_hidden_states": text(4, 5),
    }
    return Example(randomised(ChannelsLast(model)), inputs, edit="hidden_states")


@tiny("Kandinsky6SRTransformer3DModel")
def kandinsky_6_sr() -> Example:
    model = Kandinsky6SRTransformer3DModel(
        in_visual_dim=4,
        out_visual_dim=8,
        time_dim=16,
        patch_size=(1, 2, 2),
        model_dim=24,
        ff_dim=32,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
    )
    inputs = {"hidden_states": video(9, 2), "timestep": torch.tensor([500.0])}
    return Example(randomised(ChannelsLast(model)), inputs, edit="hidden_states")


@tiny("MiniMaxH3Transformer3DModel")
def minimax_h3() -> Example:
    model = MiniMaxH3Transformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        ffn_dim=32,
        in_channels=4,
        audio_in_channels=6,
        text_dim=16,
        freq_dim=16,
        time_embed_hidden_dim=24,
        time_embed_dim=16,
        rope_freq_dim=2,
    )
    words, sounds, grid = 6, 5, (FRAMES, SIZE // 2, SIZE // 2)
    before = torch.arange(words + sounds)
    places = torch.cartesian_prod(*(torch.arange(n) for n in grid)) + words
    tags = torch.tensor([1] * words + [2] * sounds + [0] * len(places))
    inputs = {
        "hidden_states": video(4),
        "audio_hidden_states": text(6, sounds),
        "encoder_hidden_states": text(16, words),
        "timestep": torch.tensor([0.7, 0.3]),
        "timestep_indices": (tags == 2).long(),
        "token_tags": tags,
        "position_ids": torch.cat([before[:, None].expand(-1, 3), places]).float(),
        "video_indices": torch.arange(words + sounds, len(tags)),
        "audio_indices": before[words:],
        "text_indices": before[:words],
    }
    return Example(randomised(PackedSequence(model)), inputs, edit="hidden_states")


@tiny("MotifVideoTransformer3DModel")
def motif() -> Example:
    sizes = {name: value for name, value in HUNYUAN.items() if name != "num_refiner_layers"}
    model = MotifVideoTransformer3DModel(
        **{**sizes, "in_channels": 9, "patch_size": 2},
        num_single_layers=2,
        num_decoder_layers=1,
        enable_text_cross_attention_dual=True,
        enable_text_cross_attention_single=True,
    )
    inputs = {
        "hidden_states": video(9),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": text(16),
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.bool),
    }
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("SanaVideoTransformer3DModel")
def sana_video() -> Example:
    model = SanaVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=12,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=SIZE,
        rope_max_seq_len=32,
    )
    inputs = wan_inputs()
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("SanaWMTransformer3DModel")
def sana_wm() -> Example:
    model = SanaWMTransformer3DModel(
        in_channels=4,
        num_layers=2,
        hidden_size=32,
        num_attention_heads=2,
        softmax_every_n=2,
        linear_head_dim=16,
        caption_channels=16,
        mlp_ratio=2.0,
        chunk_plucker_channels=8,
        chunk_plucker_post_attn_blocks=2,
    )
    poses = torch.eye(4).repeat(1, FRAMES, 1, 1)
    poses[..., 2, 3] = 0.1 * torch.arange(FRAMES)
    lens = torch.tensor([16.0, 16.0, 8.0, 8.0]).expand(1, FRAMES, 4)
    inputs = {
        "hidden_states": video(4),
        "timestep": torch.full((1, 1, FRAMES), 500.0),
        "encoder_hidden_states": text(16)[None],
        "encoder_attention_mask": torch.ones(1, 6, dtype=torch.long),
        "camera_conditions": torch.cat([poses.flatten(2), lens], dim=-1),
        "chunk_plucker": video(8),
    }
    # neither the prompt [N, 1, L, C] nor the rays of the camera are edited
    options = {"grids": {"encoder_hidden_states": None, "chunk_plucker": None}}
    return Example(randomised(model), inputs, edit="hidden_states", options=options)


@tiny("SanaWMLTX2RefinerTransformer3DModel")
def sana_wm_refiner() -> Example:
    model = SanaWMLTX2RefinerTransformer3DModel(**LTX2)
    angles = model.build_rotary_emb_for_absolute_positions(
        1, list(range(FRAMES)), SIZE, SIZE, torch.device("cpu"), fps=24.0
    )
    inputs = {
        "hidden_states": video(4),
        "encoder_hidden_states": text(24),
        "timestep": torch.full((1, FRAMES * SIZE * SIZE), 500.0),
        "video_rotary_emb": angles,
        "encoder_attention_mask": torch.ones(1, 6),
    }
    return Example(randomised(Refiner(model)), inputs, edit="hidden_states")


@tiny("WanAnimateTransformer3DModel")
def wan_animate() -> Example:
    model = WanAnimateTransformer3DModel(
        **{**WAN, "in_channels": 12},
        latent_channels=4,
        image_dim=16,
        motion_encoder_channel_sizes={"4": 16, "8": 16, "16": 16},
        motion_encoder_size=16,
        motion_style_dim=8,
        motion_dim=4,
        motion_encoder_dim=16,
        face_encoder_hidden_dim=16,
        face_encoder_num_heads=2,
        inject_face_latents_blocks=2,
    )
    inputs = {
        **wan_inputs(),
        "hidden_states": video(12),
        "encoder_hidden_states_image": text(16, 5),
        "pose_hidden_states": video(4, FRAMES - 1),
        "face_pixel_values": torch.randn(1, 3, 5, 16, 16),
    }
    options = {"grids": {"face_pixel_values": None}}  # cut out of other pictures
    return Example(randomised(model), inputs, edit="hidden_states", options=options)
