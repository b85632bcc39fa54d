"""The model: a word encoder, a UNet over pixels put into channels, and a scheduler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

WEIGHTS = Path(__file__).parent / "weights"
WORDS, WIDTH, PATCH = 16, 128, 2
"""Of a prompt; of a word's embedding; pixels along each side that are channels of one latent."""
GRID = (32, 32)
"""Of latents."""


def unet() -> UNet2DConditionModel:
    """Latents [N, 12, 32, 32], words [N, 16, 128] -> the velocity of the latents; 9 M weights."""
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=(48, 96, 192),
        down_block_types=("DownBlock2D", "DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, as diffusers has it
        cross_attention_dim=WIDTH,
        addition_embed_type="text",  # without, 1,000 steps of training did not heed a prompt
        addition_embed_type_num_heads=4,
        norm_num_groups=16,
    )


def text_encoder(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    ends = tokenizer.convert_tokens_to_ids(["<start>", "<end>"])
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=WORDS,
            bos_token_id=ends[0],
            eos_token_id=ends[1],
            pad_token_id=ends[1],
        )
    )


def tokenizer(prompts: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word, the most common first; unknown ones are left out of a prompt's meaning."""
    counts = Counter(word for prompt in prompts for word in prompt.split())
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    vocabulary = {word: i for i, word in enumerate(["<unknown>", "<start>", "<end>", *ordered])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unknown>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        model_max_length=WORDS,
        unk_token="<unknown>",
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<end>",
    )


def scheduler() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        timestep_spacing="trailing",
        steps_offset=1,  # as pipelines ask for, and without a meaning when spacing is trailing
    )


def to_latents(pixels: Tensor) -> Tensor:
    """uint8 [N, 64, 64, 3] -> [N, 12, 32, 32], in -1 to 1."""
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    return nn.functional.pixel_unshuffle(images, PATCH)


def to_pixels(latents: Tensor) -> Tensor:
    """The other way round."""
    images = nn.functional.pixel_shuffle(latents, PATCH)
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1)


def tokens(tokenizer: Any, prompts: Sequence[str]) -> Tensor:
    """int64 [N, 16]"""
    padded = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=WORDS, return_tensors="pt"
    )
    return torch.as_tensor(padded.input_ids)


class Model(NamedTuple):
    """What a picture is made with; its scheduler is :func:`scheduler`."""

    unet: Any
    text_encoder: Any
    tokenizer: Any


def load(folder: Path = WEIGHTS) -> Model:
    """The trained model, in float32. Raises ``FileNotFoundError`` before it was trained."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not there: run python -m examples.emoji.train first")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", torch_dtype=torch.float32)
    words = CLIPTextModel.from_pretrained(folder / "text_encoder", torch_dtype=torch.float32)
    own = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    return Model(unet.eval(), words.eval(), own)


def save(folder: Path, model: Model) -> None:
    """As float16, in the folders of a diffusers pipeline."""
    deepcopy(model.unet).half().save_pretrained(folder / "unet")
    deepcopy(model.text_encoder).half().save_pretrained(folder / "text_encoder")
    model.tokenizer.save_pretrained(folder / "tokenizer")
    scheduler().save_pretrained(folder / "scheduler")
