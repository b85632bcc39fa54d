"""ControlNets: edited is the picture that they are called with, beside the one they steer by."""

from __future__ import annotations

import types
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    CosmosControlNetModel,
    FluxControlNetModel,
    HunyuanDiT2DControlNetModel,
    QwenImageControlNetModel,
    SanaControlNetModel,
    SD3ControlNetModel,
    UNetControlNetXSModel,
    ZImageControlNetModel,
    ZImageTransformer2DModel,
)
from diffusers.models.controlnets import controlnet_cosmos
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.zoo_noise import randomised

from . import Example, tiny

BLOCKS: dict[str, Any] = {
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
    "conditioning_embedding_out_channels": (8, 8, 16, 16),
}


def _latents() -> dict[str, Any]:
    return {
        "sample": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor(10),
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }


@tiny("ControlNetModel")
def controlnet() -> Example:
    model = ControlNetModel(**BLOCKS, attention_head_dim=8)
    inputs = {**_latents(), "controlnet_cond": torch.rand(1, 3, 128, 128)}
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("ControlNetModel (guess mode)")
def controlnet_guess() -> Example:
    example = controlnet()
    inputs = {**example.inputs, "guess_mode": True}
    return Example(example.model, inputs, edit="sample", options={"dilate": 1})


@tiny("ControlNetModel (pooled)")
def controlnet_pooled() -> Example:
    """The outputs are means over the picture, as of the ControlNet for shuffled images."""
    model = ControlNetModel(**BLOCKS, attention_head_dim=8, global_pool_conditions=True)
    inputs = {**_latents(), "controlnet_cond": torch.rand(1, 3, 128, 128)}
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("ControlNetUnionModel")
def controlnet_union() -> Example:
    model = ControlNetUnionModel(
        **BLOCKS,
        attention_head_dim=(2, 4),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=32 + 6 * 8,
        use_linear_projection=True,
        num_trans_channel=16,
        num_trans_head=2,
        num_proj_channel=16,
    )
    inputs = {
        **_latents(),
        "controlnet_cond": [torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128)],
        "control_type": torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]),
        "control_type_idx": [0, 3],
        "added_cond_kwargs": {"text_embeds": torch.randn(1, 32), "time_ids": torch.randn(1, 6)},
    }
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


@tiny("UNetControlNetXSModel")
def controlnet_xs() -> Example:
    model = UNetControlNetXSModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        cross_attention_dim=24,
        num_attention_heads=2,
        norm_num_groups=8,
        ctrl_block_out_channels=(8, 8),
        ctrl_num_attention_heads=2,
        ctrl_max_norm_num_groups=4,
        ctrl_conditioning_embedding_out_channels=(8, 8, 16, 16),
    )
    inputs = {**_latents(), "controlnet_cond": torch.rand(1, 3, 128, 128)}
    return Example(randomised(model), inputs, edit="sample", options={"dilate": 1})


class OneFrame(nn.Module):
    """The ControlNet of Cosmos on pictures: videos of one frame."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        controls_latents: Tensor,
        latents: Tensor,
        condition_mask: Tensor,
        padding_mask: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
    ) -> Any:
        return self.model(
            controls_latents.unsqueeze(2),
            latents.unsqueeze(2),
            timestep,
            encoder_hidden_states,
            condition_mask.unsqueeze(2),
            padding_mask=padding_mask,
            return_dict=False,
        )


def _nearest(image: Tensor, size: list[int], interpolation: Any) -> Tensor:
    return functional.interpolate(image, size, mode="nearest")


@tiny("CosmosControlNetModel")
def cosmos() -> Example:
    if not hasattr(controlnet_cosmos, "transforms"):  # torchvision is not installed
        controlnet_cosmos.transforms = types.SimpleNamespace(
            functional=types.SimpleNamespace(resize=_nearest),
            InterpolationMode=types.SimpleNamespace(NEAREST="nearest"),
        )
    model = CosmosControlNetModel(
        n_controlnet_blocks=2,
        in_channels=16 + 1 + 1,
        latent_channels=16 + 1 + 1,
        model_channels=32,
        num_attention_heads=2,
        attention_head_dim=16,
        mlp_ratio=2,
        text_embed_dim=24,
        adaln_lora_dim=4,
        max_size=(4, 32, 32),
    )
    inputs = {
        "controls_latents": torch.randn(1, 16, 16, 16),
        "latents": torch.randn(1, 16, 16, 16),
        "condition_mask": torch.ones(1, 1, 16, 16),
        "padding_mask": torch.zeros(1, 1, 16, 16),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, 7, 24),
    }
    options = {"grids": {"condition_mask": None, "padding_mask": None}}
    return Example(randomised(OneFrame(model)), inputs, edit="controls_latents", options=options)


def _flux(**changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    model = FluxControlNetModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=12,
        axes_dims_rope=[4, 4, 8],
        **changes,
    )
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    inputs = {
        "hidden_states": torch.randn(1, 256, 16),
        "controlnet_cond": torch.randn(1, 256, 16),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "pooled_projections": torch.randn(1, 12),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.stack([torch.zeros(16, 16), rows, columns], dim=-1).flatten(0, 1),
        "txt_ids": torch.zeros(7, 3),
    }
    return randomised(model), inputs


@tiny("FluxControlNetModel")
def flux() -> Example:
    model, inputs = _flux()
    grids = {"hidden_states": (16, 16), "controlnet_cond": (16, 16)}
    return Example(model, inputs, edit="hidden_states", options={"grids": grids})


@tiny("FluxControlNetModel (union)")
def flux_union() -> Example:
    model, inputs = _flux(num_mode=3, guidance_embeds=True)
    inputs |= {"controlnet_mode": torch.tensor([[1]]), "guidance": torch.tensor([3.5])}
    grids = {"hidden_states": (16, 16), "controlnet_cond": (16, 16)}
    return Example(model, inputs, edit="hidden_states", options={"grids": grids})


@tiny("FluxControlNetModel (hint image)")
def flux_hint() -> Example:
    """Steered by an image, which it packs itself; patches of it are a token of the latents."""
    model, inputs = _flux(conditioning_embedding_channels=16, patch_size=1)
    inputs["controlnet_cond"] = torch.rand(1, 3, 128, 128)
    options = {"grids": {"hidden_states": (16, 16)}}
    return Example(model, inputs, edit="hidden_states", options=options)


@tiny("HunyuanDiT2DControlNetModel")
def hunyuan_dit() -> Example:
    model = HunyuanDiT2DControlNetModel(
        sample_size=32,
        patch_size=2,
        in_channels=4,
        num_attention_heads=2,
        attention_head_dim=16,
        hidden_size=32,
        transformer_num_layers=6,
        cross_attention_dim=24,
        cross_attention_dim_t5=24,
        pooled_projection_dim=12,
        text_len=7,
        text_len_t5=5,
    )
    rotary = get_2d_rotary_pos_embed(16, ((0, 0), (16, 16)), (16, 16), output_type="pt")
    inputs = {
        "hidden_states": torch.randn(1, 4, 32, 32),
        "timestep": torch.tensor([10.0]),
        "controlnet_cond": torch.randn(1, 4, 32, 32),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "text_embedding_mask": torch.ones(1, 7),
        "encoder_hidden_states_t5": torch.randn(1, 5, 24),
        "text_embedding_mask_t5": torch.ones(1, 5),
        "image_meta_size": torch.randn(1, 6),
        "style": torch.tensor([0]),
        "image_rotary_emb": rotary,
    }
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("QwenImageControlNetModel")
def qwen_image() -> Example:
    model = QwenImageControlNetModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 4, 8),
    )
    inputs = {
        "hidden_states": torch.randn(1, 256, 16),
        "controlnet_cond": torch.randn(1, 256, 16),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 16, 16)]],
    }
    grids = {"hidden_states": (16, 16), "controlnet_cond": (16, 16)}
    return Example(randomised(model), inputs, edit="hidden_states", options={"grids": grids})


@tiny("SanaControlNetModel")
def sana() -> Example:
    model = SanaControlNetModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=24,
        sample_size=16,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "timestep": torch.tensor([10]),
        "controlnet_cond": torch.randn(1, 4, 16, 16),
        "encoder_attention_mask": torch.ones(1, 7),
    }
    return Example(randomised(model), inputs, edit="hidden_states")


def _sd3(**changes: Any) -> Example:
    model = SD3ControlNetModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        pooled_projection_dim=12,
        pos_embed_max_size=24,
        caption_projection_dim=32,
        **changes,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 32, 32),
        "controlnet_cond": torch.randn(1, 4, 32, 32),
        "encoder_hidden_states": torch.randn(1, 7, 24),
        "pooled_projections": torch.randn(1, 12),
        "timestep": torch.tensor([10]),
    }
    return Example(randomised(model), inputs, edit="hidden_states")


@tiny("SD3ControlNetModel")
def sd3() -> Example:
    return _sd3(joint_attention_dim=24)


@tiny("SD3ControlNetModel (3.5 large)")
def sd35_large() -> Example:
    """Called with tokens that the transformer has embedded, and without text."""
    example = _sd3(joint_attention_dim=None, use_pos_embed=False, pos_embed_type=None)
    tokens = torch.randn(1, 256, 32)
    inputs = {**example.inputs, "hidden_states": tokens, "encoder_hidden_states": None}
    options = {"grids": {"hidden_states": (16, 16)}}
    return Example(example.model, inputs, edit="hidden_states", options=options)


class Batched(nn.Module):
    """Z-Image's ControlNet takes lists of images; here one image [1, C, H, W]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, control_context: Tensor, t: Tensor, cap_feats: Tensor) -> Any:
        image, control = x[0].unsqueeze(1), control_context[0].unsqueeze(1)
        return self.model([image], t, [cap_feats], [control])


def _z_image(control: str | None) -> Example:
    shared: dict[str, Any] = {"dim": 32, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2}
    transformer = ZImageTransformer2DModel(
        **shared,
        in_channels=4,
        n_layers=1,
        cap_feat_dim=24,
        axes_dims=[4, 4, 8],
        axes_lens=[128, 32, 32],
    )
    model = ZImageControlNetModel(
        **shared,
        control_layers_places=[0, 1],
        control_refiner_layers_places=[0],
        control_in_dim=4,
        add_control_noise_refiner=control,
    )
    model = ZImageControlNetModel.from_transformer(model, transformer)
    model.rope_embedder(torch.zeros(1, 3, dtype=torch.int32))  # makes tables in its first call
    inputs = {
        "x": torch.randn(1, 4, 32, 32),
        "control_context": torch.randn(1, 4, 32, 32),
        "t": torch.tensor([0.5]),
        "cap_feats": torch.randn(7, 24),
    }
    return Example(randomised(Batched(model)), inputs, edit="x")


@tiny("ZImageControlNetModel")
def z_image() -> Example:
    return _z_image(None)


@tiny("ZImageControlNetModel (2.1)")
def z_image_21() -> Example:
    return _z_image("control_noise_refiner")
