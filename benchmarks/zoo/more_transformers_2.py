"""Image transformers on latents [N, C, H, W]."""

from __future__ import annotations

import torch
from diffusers import (
    BriaFibo2Transformer2DModel,
    DreamLiteTransformer2DModel,
    ErnieImageTransformer2DModel,
    GlmImageTransformer2DModel,
    HiDreamImageTransformer2DModel,
    HunyuanImageTransformer2DModel,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
    PRXTransformer2DModel,
)
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_dreamlite import DreamLiteAttnProcessor2_0
from torch import Tensor, nn

from benchmarks.zoo_noise import randomised

from . import Example, tiny

TEXT = 7
OPTIONS = {"dilate": 1}


@tiny("DreamLiteTransformer2DModel")
def dream_lite() -> Example:
    """With the processor that the UNet around it installs: two heads share one key and value."""
    model = DreamLiteTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=32,
        num_layers=2,
        norm_num_groups=8,
        cross_attention_dim=24,
        use_linear_projection=True,
        qk_norm="rms_norm",
        num_kv_heads=1,
        ff_mult=3,
    )
    for part in model.modules():
        if isinstance(part, Attention):
            part.set_processor(DreamLiteAttnProcessor2_0())
    inputs = {
        "hidden_states": torch.randn(1, 32, 16, 16),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=OPTIONS)


@tiny("BriaFibo2Transformer2DModel")
def bria_fibo2() -> Example:
    """Three blocks, of which the second reads the text as well."""
    model = BriaFibo2Transformer2DModel(
        in_channels=4,
        patch_size=2,
        dim=32,
        n_layers=3,
        n_refiner_layers=1,
        n_heads=2,
        cap_feat_dim=24,
        injection_layer_ids=(1,),
        perceiver_num_layers=1,
        min_num_gist_tokens=4,
        max_num_gist_tokens=8,
        gist_step=4,
        gist_min_text_len=4,
        gist_max_text_len=16,
        axes_dims=(4, 6, 6),
        axes_lens=(32, 32, 32),
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 32, 32),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, 2, TEXT, 24),
    }
    options = {**OPTIONS, "grids": {"encoder_hidden_states": None}}  # features of two layers
    return Example(randomised(model), inputs, edit="hidden_states", options=options)


@tiny("ErnieImageTransformer2DModel")
def ernie_image() -> Example:
    model = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=64,
        in_channels=8,
        out_channels=8,
        patch_size=1,
        text_in_dim=24,
        rope_axes_dim=(4, 6, 6),
    )
    inputs = {
        "hidden_states": torch.randn(1, 8, 8, 8),
        "timestep": torch.tensor([500.0]),
        "text_bth": torch.randn(1, TEXT, 24),
        "text_lens": torch.tensor([TEXT - 2]),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=OPTIONS)


@tiny("GlmImageTransformer2DModel")
def glm_image() -> Example:
    model = GlmImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=24,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=32,
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "prior_token_id": torch.randint(0, 32, (1, 64)),
        "prior_token_drop": torch.zeros(1, 64, dtype=torch.bool),
        "timestep": torch.tensor([500.0]),
        "target_size": torch.tensor([[128.0, 128.0]]),
        "crop_coords": torch.zeros(1, 2),
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=OPTIONS)


@tiny("HiDreamImageTransformer2DModel")
def hi_dream_image() -> Example:
    """Every image token goes to two of four experts: how many an expert gets is data."""
    model = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        caption_channels=[24, 24],
        text_emb_dim=12,
        num_routed_experts=4,
        num_activated_experts=2,
        axes_dims_rope=(4, 6, 6),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "timesteps": torch.tensor([500.0]),
        "encoder_hidden_states_t5": torch.randn(1, TEXT, 24),
        "encoder_hidden_states_llama3": torch.randn(2, 1, TEXT, 24),
        "pooled_embeds": torch.randn(1, 12),
    }
    options = {**OPTIONS, "grids": {"encoder_hidden_states_llama3": None}}  # two layers' features
    return Example(randomised(model), inputs, edit="hidden_states", options=options)


def _hunyuan_image(**second: int) -> HunyuanImageTransformer2DModel:
    model = HunyuanImageTransformer2DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=(1, 1),
        text_embed_dim=24,
        rope_axes_dim=(8, 8),
        **second,
    )
    return randomised(model)


def _hunyuan_image_inputs() -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(1, 8, 16, 16),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "encoder_attention_mask": torch.arange(TEXT)[None] < TEXT - 2,
    }


@tiny("HunyuanImageTransformer2DModel")
def hunyuan_image() -> Example:
    """One text encoder, as it is by default."""
    inputs = _hunyuan_image_inputs()
    return Example(_hunyuan_image(), inputs, edit="hidden_states", options=OPTIONS)


@tiny("HunyuanImageTransformer2DModel (two text encoders)")
def hunyuan_image_two() -> Example:
    """The pipeline's. Boolean masks pick the tokens of both: their number depends on values."""
    inputs = {
        **_hunyuan_image_inputs(),
        "encoder_hidden_states_2": torch.randn(1, 5, 12),
        "encoder_attention_mask_2": torch.arange(5)[None] < 3,
    }
    model = _hunyuan_image(text_embed_2_dim=12)
    return Example(model, inputs, edit="hidden_states", options=OPTIONS)


@tiny("PRXTransformer2DModel")
def prx() -> Example:
    model = PRXTransformer2DModel(
        in_channels=4,
        patch_size=2,
        context_in_dim=24,
        hidden_size=32,
        num_heads=2,
        depth=2,
        axes_dim=[8, 8],
    )
    inputs = {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([0.5]),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
        "attention_mask": torch.arange(TEXT)[None] < TEXT - 2,
    }
    return Example(randomised(model), inputs, edit="hidden_states", options=OPTIONS)


JOY = {
    "patch_size": [1, 2, 2],
    "in_channels": 4,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 24,
    "num_layers": 2,
    "rope_dim_list": [4, 6, 6],
}


def _joy_inputs() -> dict[str, Tensor]:
    return {
        "hidden_states": torch.randn(1, 4, 16, 16),
        "reference": torch.randn(1, 4, 16, 16),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": torch.randn(1, TEXT, 24),
    }


class _JoyEdit(nn.Module):
    """Two items [N, 2, C, 1, H, W]: the reference, and the picture that is made."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: Tensor, reference: Tensor, **rest: Tensor) -> Tensor:
        items = torch.stack([reference, hidden_states], dim=1).unsqueeze(3)
        return self.model(items, return_dict=False, **rest)[0][:, -1, :, 0]


@tiny("JoyImageEditTransformer3DModel")
def joy_image_edit() -> Example:
    model = _JoyEdit(randomised(JoyImageEditTransformer3DModel(**JOY)))
    return Example(model.eval(), _joy_inputs(), edit="hidden_states", options=OPTIONS)


class _JoyEditPlus(nn.Module):
    """Patches [N, L, C, 1, 2, 2] of the picture that is made, then of the reference."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden_states: Tensor, reference: Tensor, **rest: Tensor) -> Tensor:
        batch, channels, height, width = hidden_states.shape
        rows, columns = height // 2, width // 2
        both = [self._patches(image) for image in (hidden_states, reference)]
        shapes = [[(1, rows, columns)] * 2] * batch
        out = self.model(torch.cat(both, 1), shape_list=shapes, return_dict=False, **rest)[0]
        target = out[:, : rows * columns, :, 0].reshape(batch, rows, columns, channels, 2, 2)
        return target.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)

    @staticmethod
    def _patches(image: Tensor) -> Tensor:
        batch, channels, height, width = image.shape
        tiles = image.reshape(batch, channels, height // 2, 2, width // 2, 2)
        return tiles.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels, 1, 2, 2)


@tiny("JoyImageEditPlusTransformer3DModel")
def joy_image_edit_plus() -> Example:
    model = _JoyEditPlus(randomised(JoyImageEditPlusTransformer3DModel(**JOY)))
    inputs = {
        **_joy_inputs(),
        "encoder_hidden_states_mask": (torch.arange(TEXT)[None] < TEXT - 2).float(),
    }
    options = {**OPTIONS, "grids": {"reference": None}}
    return Example(model.eval(), inputs, edit="hidden_states", options=options)
