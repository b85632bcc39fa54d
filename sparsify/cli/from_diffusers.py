"""Models of diffusers by class name, with inputs as their configuration asks for them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..codegen.errors import ModelError
from .models import Example, Grids

OWN = "write a function that builds the model and its inputs, and name it python:module:function"


@dataclass(frozen=True)
class FromDiffusers:
    """A class, ``decode`` if only that half of an autoencoder is meant, and what configures it."""

    name: str
    method: str
    config: Path | None

    def build(self, grids: Grids) -> Example:
        family = _FAMILIES.get(self.name)
        if family is None:
            known = ", ".join(_FAMILIES)
            raise ModelError(f"inputs are known for {known}, not for {self.name!r}: {OWN}")
        torch.manual_seed(0)
        model = _load(self.name, self.config).eval()
        if not self.method:
            return family(model, grids)
        if self.method != "decode" or family is not _autoencoder:
            raise ModelError(f"{self.name}.{self.method}: only autoencoders have .decode: {OWN}")
        return _decoder(model, grids)


def _load(name: str, path: Path | None) -> Any:
    """The class's defaults, those of a file, or a folder with its weights if it holds some."""
    try:
        kind = getattr(importlib.import_module("diffusers"), name)
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise ModelError("diffusers is not installed: pip install diffusers") from None
    if path is None:
        return kind()
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise ModelError(f"{file} is not there: name a config.json, or a folder that holds one")
    try:
        config = json.loads(file.read_text())
        made_for = config.get("_class_name", name)
    except (ValueError, AttributeError):
        raise ModelError(f"{file} is not a configuration in JSON: name a config.json") from None
    if made_for != name:
        raise ModelError(f"{file} is of {made_for}: name diffusers:{made_for}:{path}")
    try:
        if path.is_dir() and any(path.glob("diffusion_pytorch_model*")):
            return kind.from_pretrained(path, local_files_only=True)
        return kind.from_config(config)
    except Exception as error:  # diffusers does not check what it reads
        raise ModelError(f"{file} makes no {name}: {error}") from error


def _unet(model: Any, grids: Grids) -> Example:
    """A noisy picture and a step; a text where there is attention to one; a label."""
    config = model.config
    extra = config.get("addition_embed_type")
    if config.class_embed_type is not None or extra not in (None, "text", "text_time"):
        raise ModelError(f"its embedding of {extra or 'classes'} takes inputs of its own: {OWN}")
    args = [_picture(config.in_channels, _sides(config.sample_size or 64)), torch.tensor(10)]
    kwargs: dict[str, Any] = {}
    if "cross_attention_dim" in config:
        width = config.encoder_hid_dim or config.cross_attention_dim
        args.append(_text(77, width if isinstance(width, int) else width[0]))
    if config.num_class_embeds is not None:
        kwargs["class_labels"] = torch.tensor([0])
    if extra == "text_time":
        times = 6 * config.addition_time_embed_dim
        pooled = torch.randn(1, config.projection_class_embeddings_input_dim - times)
        kwargs["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}
    return Example(model, tuple(args), kwargs, grids)


def _labelled(model: Any, grids: Grids) -> Example:
    """A transformer on latents, with a step and a label."""
    kwargs = {"timestep": torch.tensor([10]), "class_labels": torch.tensor([0])}
    return Example(model, (_latents(model),), kwargs, grids)


def _captioned(model: Any, grids: Grids) -> Example:
    """A transformer on latents that attends to a caption."""
    config = model.config
    kwargs: dict[str, Any] = {
        "encoder_hidden_states": _text(300, config.caption_channels or config.cross_attention_dim),
        "timestep": torch.tensor([10]),
    }
    if hasattr(model, "use_additional_conditions"):  # PixArt alone
        is_used = model.use_additional_conditions
        size, aspect = (torch.full((1, 2), 1024.0), torch.ones(1, 1)) if is_used else (None, None)
        kwargs["added_cond_kwargs"] = {"resolution": size, "aspect_ratio": aspect}
    return Example(model, (_latents(model),), kwargs, grids)


def _joint(model: Any, grids: Grids) -> Example:
    """A transformer on latents and a text in one sequence."""
    kwargs = {
        "encoder_hidden_states": _text(333, model.config.joint_attention_dim),
        "pooled_projections": torch.randn(1, model.config.pooled_projection_dim),
        "timestep": torch.tensor([10]),
    }
    return Example(model, (_latents(model),), kwargs, grids)


def _tokens(model: Any, grids: Grids) -> Example:
    """The same, with latents given as tokens: 64x64 of them unless the user's grid says else."""
    config, name = model.config, "hidden_states"
    grid = grids.get(name, (64, 64))
    places = torch.cartesian_prod(torch.zeros(1), *(torch.arange(float(side)) for side in grid))
    kwargs = {
        "encoder_hidden_states": _text(512, config.joint_attention_dim),
        "pooled_projections": torch.randn(1, config.pooled_projection_dim),
        "timestep": torch.tensor([0.5]),
        "img_ids": places,
        "txt_ids": torch.zeros(512, 3),
        "guidance": torch.tensor([3.5]) if config.guidance_embeds else None,
    }
    tokens = torch.randn(1, grid[0] * grid[1], config.in_channels)
    return Example(model, (tokens,), kwargs, {**grids, name: grid})


def _autoencoder(model: Any, grids: Grids) -> Example:
    """A picture, encoded and decoded."""
    return Example(model, (_picture(model.config.in_channels, _pictured(model)),), {}, grids)


def _decoder(model: Any, grids: Grids) -> Example:
    """Latents, decoded."""
    config = model.config
    blocks = config.get("block_out_channels") or config.encoder_block_out_channels
    sides = [side >> (len(blocks) - 1) for side in _pictured(model)]
    return Example(Decoder(model).eval(), (_picture(config.latent_channels, sides),), {}, grids)


class Decoder(nn.Module):
    """The decoding half of an autoencoder."""

    def __init__(self, autoencoder: Any) -> None:
        super().__init__()
        autoencoder.encoder = nn.Identity()  # its weights would be kept and exported
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [N, C, h, w] -> picture [N, C', H, W]."""
        picture: Tensor = self.autoencoder.decode(latents).sample
        return picture


def _pictured(model: Any) -> list[int]:
    return _sides(model.config.get("sample_size") or 512)


def _latents(model: Any) -> Tensor:
    return _picture(model.config.in_channels, _sides(model.config.sample_size))


def _sides(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _picture(channels: int, sides: list[int]) -> Tensor:
    return torch.randn(1, channels, *sides)


def _text(words: int, width: int) -> Tensor:
    return torch.randn(1, words, width)


_FAMILIES: dict[str, Callable[[Any, Grids], Example]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet,
    "DiTTransformer2DModel": _labelled,
    "PixArtTransformer2DModel": _captioned,
    "SanaTransformer2DModel": _captioned,
    "SD3Transformer2DModel": _joint,
    "FluxTransformer2DModel": _tokens,
    "AutoencoderKL": _autoencoder,
    "AutoencoderTiny": _autoencoder,
    "AutoencoderDC": _autoencoder,
    "VQModel": _autoencoder,
}
