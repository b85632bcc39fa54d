"""Modules around models on videos whose call is not one plain call with a video."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor

from .wrapped import Wrapped


class FixedNoise(Wrapped):
    """LTX 2's diffusion decoder with the noise as an input: its own call draws it again."""

    def forward(self, z: Tensor, noise: Tensor) -> Any:
        decoder = self.model.decoder
        context = decoder.forward_stage_4(decoder.forward_stages_1_to_3(z))
        return decoder.denoise(context, noise, decoder.default_num_inference_steps)


class Packed(Wrapped):
    """A transformer on tokens [N, T*H*W, C], called with a video [N, C, T, H, W] as LTX's
    pipeline does."""

    def forward(self, hidden_states: Tensor, **inputs: Any) -> tuple[Tensor, ...]:
        frames, height, width = hidden_states.shape[2:]
        tokens = hidden_states.flatten(2).transpose(1, 2)
        sizes = {"num_frames": frames, "height": height, "width": width}
        first, *others = self.model(hidden_states=tokens, **sizes, return_dict=False, **inputs)
        return first.transpose(1, 2).unflatten(2, (frames, height, width)), *others


class Refiner(Wrapped):
    """Sana's refiner on one block of frames, packed into tokens."""

    def forward(self, hidden_states: Tensor, **inputs: Any) -> Tensor:
        tokens = hidden_states.flatten(2).transpose(1, 2)
        out: Tensor = self.model(hidden_states=tokens, **inputs).sample
        return out.transpose(1, 2).unflatten(2, hidden_states.shape[2:])


class ChannelsLast(Wrapped):
    """A transformer on [N, T, H, W, C], called with a video [N, C, T, H, W]."""

    def forward(self, hidden_states: Tensor, **inputs: Any) -> Tensor:
        video = hidden_states.permute(0, 2, 3, 4, 1)
        out: Tensor = self.model(hidden_states=video, **inputs).sample
        return out.permute(0, 4, 1, 2, 3)


class PackedSequence(Wrapped):
    """MiniMax H3 on its one sequence of text, sound and patches of the video."""

    def forward(self, hidden_states: Tensor, **inputs: Any) -> tuple[Tensor, Tensor]:
        channels, frames, height, width = hidden_states.shape[1:]
        patches = hidden_states.unflatten(4, (width // 2, 2)).unflatten(3, (height // 2, 2))
        rows = patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)
        rows, sound = self.model(hidden_states=rows, return_dict=False, **inputs)
        patches = rows.unflatten(2, (channels, 2, 2))
        patches = patches.unflatten(1, (frames, height // 2, width // 2))
        out = patches.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)
        return out, sound


class Omni(Wrapped):
    """Cosmos 3 on one prompt and one video."""

    def forward(self, hidden_states: Tensor, input_ids: Tensor, timestep: Tensor) -> Any:
        frames, height, width = hidden_states.shape[2:]
        grid = (frames, height // 2, width // 2)
        words, patches = len(input_ids), frames * grid[1] * grid[2]
        places = torch.arange(words, words + patches)
        moments = torch.cartesian_prod(*(torch.arange(n) for n in grid)).T + words
        out = self.model(
            input_ids=input_ids,
            text_indexes=torch.arange(words),
            position_ids=torch.cat([torch.arange(words).expand(3, -1), moments], dim=1),
            und_len=words,
            sequence_length=words + patches,
            vision_tokens=[hidden_states],
            vision_token_shapes=[grid],
            vision_sequence_indexes=places,
            vision_mse_loss_indexes=places,
            vision_timesteps=timestep.expand(patches),
            vision_noisy_frame_indexes=[torch.arange(frames)],
        )
        return out.sample[0]


class Reference(Wrapped):
    """Wan Animate 2's pass over the video of reference, which fills its cache."""

    def forward(self, hidden_states: Tensor, prompt: Tensor, **inputs: Tensor) -> Any:
        frames, height, width = hidden_states.shape[2:]
        grid = (frames, height // 2, width // 2)
        out = self.model(
            hidden_states=list(hidden_states),
            encoder_hidden_states=list(prompt),
            condition_latents=[torch.zeros_like(hidden_states[0])],
            kv_cache=WanAnimate2KVCache(len(self.model.blocks)),
            kv_cache_mode="extract",
            seq_len=grid[0] * grid[1] * grid[2],
            offset_grid_sizes=torch.tensor([grid]),
            **inputs,
        )
        return out.sample[0][None]
