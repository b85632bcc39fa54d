"""Image transformers on packed tokens [N, L, C]."""

from __future__ import annotations

import torch
from diffusers import (
    BriaFiboTransformer2DModel,
    BriaTransformer2DModel,
    Ideogram4Transformer2DModel,
    Krea2Transformer2DModel,
    LongCatImageTransformer2DModel,
    NucleusMoEImageTransformer2DModel,
    OvisImageTransformer2DModel,
)
from torch import Tensor, nn

from benchmarks.zoo_noise import randomised

from . import Example, tiny

TEXT = 7
GRID = (16, 16)
OPTIONS = {"grids": {"hidden_states": GRID}, "dilate": 1}


def _grid_ids(first: int = 0) -> Tensor:
    """(first, row, column) of every image token."""
    rows, columns = torch.meshgrid(*map(torch.arange, GRID), indexing="ij")
    return torch.stack([torch.full_like(rows, first), rows, columns], -1).reshape(-1, 3).float()


def _tokens(channels: int) -> Tensor:
    return torch.randn(1, GRID[0] * GRID[1], channels)


@tiny("BriaTransformer2DModel")
def bria() -> Example:
    model = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=[4, 6, 6],
    )
    inputs = {
        "hidden_states": _tokens(16),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "timestep": torch.tensor([500.0]),
        "img_ids": _grid_ids(),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=OPTIONS)


@tiny("BriaFiboTransformer2DModel")
def bria_fibo() -> Example:
    model = BriaFiboTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=[4, 6, 6],
        text_encoder_dim=12,
    )
    inputs = {
        "hidden_states": _tokens(16),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "text_encoder_layers": [torch.randn(1, TEXT, 12) for _ in range(2)],
        "timestep": torch.tensor([500.0]),
        "img_ids": _grid_ids(),
        "txt_ids": torch.zeros(TEXT, 3),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=OPTIONS)


@tiny("LongCatImageTransformer2DModel")
def longcat_image() -> Example:
    model = LongCatImageTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=24,
        axes_dims_rope=[4, 6, 6],
    )
    text_ids = torch.arange(TEXT)[:, None] * torch.tensor([0.0, 1.0, 1.0])
    inputs = {
        "hidden_states": _tokens(16),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "timestep": torch.tensor([0.5]),
        "img_ids": _grid_ids(first=1),
        "txt_ids": text_ids,
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=OPTIONS)


@tiny("OvisImageTransformer2DModel")
def ovis_image() -> Example:
    model = OvisImageTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
    )
    text_ids = torch.arange(TEXT)[:, None] * torch.tensor([0.0, 1.0, 1.0])
    inputs = {
        "hidden_states": _tokens(16),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "timestep": torch.tensor([0.5]),
        "img_ids": _grid_ids(),
        "txt_ids": text_ids,
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=OPTIONS)


@tiny("Krea2Transformer2DModel")
def krea2() -> Example:
    model = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        timestep_embed_dim=16,
        text_hidden_dim=24,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=32,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(4, 6, 6),
    )
    inputs = {
        "hidden_states": _tokens(16),
        "encoder_hidden_states": torch.randn(1, TEXT, 3, 24),
        "timestep": torch.tensor([0.5]),
        "position_ids": torch.cat([torch.zeros(TEXT, 3), _grid_ids()]),
        "encoder_attention_mask": torch.arange(TEXT)[None] < TEXT - 2,
    }
    # features of several layers of the text encoder: [N, L, layers, C], no picture
    grids = {"hidden_states": GRID, "encoder_hidden_states": None}
    options = {**OPTIONS, "grids": grids}
    return Example(randomised(model), inputs, edit="hidden_states", options=options)


@tiny("NucleusMoEImageTransformer2DModel")
def nucleus_moe_image() -> Example:
    """The first block is dense, in the second each of four experts takes half of the tokens.

    The loop over experts: ``use_grouped_mm`` wants bfloat16 when it is captured. Without a mask of
    the text, which the pipeline drops if all of it is valid.
    """
    model = NucleusMoEImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        joint_attention_dim=24,
        axes_dims_rope=(4, 6, 6),
        dense_moe_strategy="leave_first_block_dense",
        num_experts=4,
        moe_intermediate_dim=32,
        capacity_factors=2.0,
    )
    for name, parameter in model.named_parameters():
        if ".experts." in name:  # these are allocated and left to the checkpoint
            nn.init.normal_(parameter, std=0.1)
    inputs = {
        "hidden_states": _tokens(16),
        "img_shapes": [(1, *GRID)],
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "timestep": torch.tensor([0.5]),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=OPTIONS)


class _Ideogram4(nn.Module):
    """Image tokens alone go in and out; the text's share of the sequence is filled with zeros,
    as the pipeline does."""

    def __init__(self, model: Ideogram4Transformer2DModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, **rest: Tensor
    ) -> Tensor:
        padding = hidden_states.new_zeros(1, TEXT, hidden_states.shape[-1])
        features = encoder_hidden_states.new_zeros(
            1, hidden_states.shape[1], encoder_hidden_states.shape[-1]
        )
        out = self.model(
            hidden_states=torch.cat([padding, hidden_states], dim=1),
            encoder_hidden_states=torch.cat([encoder_hidden_states, features], dim=1),
            return_dict=False,
            **rest,
        )
        return out[0][:, TEXT:]


def _ideogram4() -> Ideogram4Transformer2DModel:
    model = Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=64,
        adaln_dim=16,
        llm_features_dim=24,
        mrope_section=(4, 2, 2),
    )
    return randomised(model)


@tiny("Ideogram4Transformer2DModel")
def ideogram4() -> Example:
    text_ids = torch.arange(TEXT)[:, None].expand(-1, 3)
    is_text = torch.arange(TEXT + GRID[0] * GRID[1])[None] < TEXT
    inputs = {
        "hidden_states": _tokens(16),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "timestep": torch.tensor([0.5]),
        "position_ids": torch.cat([text_ids, _grid_ids().long() + 65536])[None],
        "segment_ids": torch.ones_like(is_text, dtype=torch.long),
        "indicator": torch.where(is_text, 3, 2),
    }
    model = _Ideogram4(_ideogram4()).eval()
    return Example(model, inputs, edit="hidden_states", options=OPTIONS)


@tiny("Ideogram4Transformer2DModel (no prompt)")
def ideogram4_no_prompt() -> Example:
    """The pipeline's unconditional pass: a sequence of image tokens only."""
    segments = torch.ones(1, GRID[0] * GRID[1], dtype=torch.long)
    inputs = {
        "hidden_states": _tokens(16),
        "encoder_hidden_states": torch.zeros(*segments.shape, 24),
        "timestep": torch.tensor([0.5]),
        "position_ids": _grid_ids().long()[None] + 65536,
        "segment_ids": segments,
        "indicator": 2 * segments,
    }
    return Example(_ideogram4(), inputs, edit="hidden_states", options=OPTIONS)
