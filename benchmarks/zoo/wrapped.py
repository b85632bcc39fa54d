"""Modules around models on images whose call is not one plain call with an image."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import ConsistencyDecoderVAE
from diffusers.models.autoencoders import autoencoder_rae
from torch import Tensor, nn


class Wrapped(nn.Module):
    """A model, called in another way."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model


class OneFrame(Wrapped):
    """A model of videos on a picture: a video of one frame."""

    def __init__(self, model: nn.Module, **constants: Any) -> None:
        super().__init__(model)
        self.constants = constants

    def forward(self, sample: Tensor) -> Tensor:
        video: Tensor = self.model(sample.unsqueeze(2), **self.constants).sample
        return video.squeeze(2)


class Encoder(Wrapped):
    def forward(self, sample: Tensor) -> Any:
        return self.model.encode(sample).latent_dist.mode()


class Inpainting(Wrapped):
    """With another name for the mask: ``update`` has its own ``mask``."""

    def forward(self, sample: Tensor, mask_image: Tensor) -> Any:
        return self.model(sample, mask=mask_image).sample


class Halves(Wrapped):
    """Encodes and decodes as pipelines do; ``forward`` of AutoencoderTiny rounds to bytes."""

    def forward(self, sample: Tensor) -> Any:
        return self.model.decode(self.model.encode(sample).latents).sample


class MoVQ(Wrapped):
    """Kandinsky 2: the latents modulate the norms of the decoder, and are not quantised."""

    def forward(self, sample: Tensor) -> Any:
        latents = self.model.encode(sample).latents
        return self.model.decode(latents, force_not_quantize=True).sample


class ConsistencyStep(Wrapped):
    """Encodes, and decodes by the first of two steps; the noise, which ``decode`` draws again, is
    given."""

    def __init__(self, model: ConsistencyDecoderVAE) -> None:
        super().__init__(model)
        scheduler = model.decoder_scheduler
        scheduler.set_timesteps(2)
        step = scheduler.timesteps[0]
        self.register_buffer("step", step)
        self.scales = tuple(
            float(table[step]) for table in (scheduler.c_in, scheduler.c_out, scheduler.c_skip)
        )

    def forward(self, sample: Tensor, noise: Tensor) -> Tensor:
        c_in, c_out, c_skip = self.scales
        latents = self.model.encode(sample).latent_dist.mode()
        latents = latents * self.model.config.scaling_factor - self.model.means
        latents = nn.functional.interpolate(
            latents / self.model.stds, mode="nearest", scale_factor=2.0
        )
        steered = torch.concat([noise * c_in, latents], dim=1)
        image: Tensor = self.model.decoder_unet(steered, self.step).sample[:, :3]
        return image * c_out + noise * c_skip


class Registers(nn.Module):
    """In place of DINOv2 with registers, which transformers defines: its embeddings and blocks."""

    def __init__(self, hidden_size: int, patch_size: int, num_hidden_layers: int, **_: Any) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, hidden_size, patch_size, patch_size)
        self.extra = nn.Parameter(torch.randn(1, 5, hidden_size))
        self.position = nn.Parameter(torch.randn(1, 64, hidden_size))
        blocks = (
            autoencoder_rae.ViTMAELayer(
                hidden_size=hidden_size, num_attention_heads=2, intermediate_size=2 * hidden_size
            )
            for _ in range(num_hidden_layers)
        )
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(hidden_size, elementwise_affine=False)

    def forward(self, images: Tensor) -> Any:
        tokens = self.patches(images).flatten(2).transpose(1, 2) + self.position
        tokens = torch.cat([self.extra.expand(len(tokens), -1, -1), tokens], dim=1)
        return self.norm(self.blocks(tokens))[:, 5:]


class LoRA(nn.Module):
    """A linear layer with a low-rank update beside it, as peft computes it unmerged."""

    def __init__(self, base: nn.Linear, rank: int = 4, scale: float = 0.5) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, hidden_states: Tensor, *unused: Any) -> Tensor:
        update: Tensor = self.up(self.down(hidden_states))
        return self.base(hidden_states) + update * self.scale


class OneFrameControl(Wrapped):
    """The ControlNet of Cosmos on pictures: videos of one frame."""

    def forward(
        self,
        controls_latents: Tensor,
        latents: Tensor,
        condition_mask: Tensor,
        padding_mask: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
    ) -> Any:
        control, video = controls_latents.unsqueeze(2), latents.unsqueeze(2)
        condition = condition_mask.unsqueeze(2)
        own = {"padding_mask": padding_mask, "return_dict": False}
        return self.model(control, video, timestep, encoder_hidden_states, condition, **own)


class OneControl(Wrapped):
    """Z-Image's ControlNet takes lists of images; here one image [1, C, H, W]."""

    def forward(self, x: Tensor, control_context: Tensor, t: Tensor, cap_feats: Tensor) -> Any:
        image, control = x[0].unsqueeze(1), control_context[0].unsqueeze(1)
        return self.model([image], t, [cap_feats], [control])


class OneImage(Wrapped):
    """Z-Image on a batch of images and texts in place of lists."""

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        images = list(latents.unsqueeze(2).unbind())
        (output,) = self.model(images, timestep, list(text.unbind()), return_dict=False)
        return torch.stack(output).squeeze(2)


class ImageOnly(Wrapped):
    """Ideogram 4: image tokens alone go in and out; the text's share of the sequence is filled
    with zeros, as the pipeline does."""

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, **rest: Tensor
    ) -> Tensor:
        count, words = hidden_states.shape[1], encoder_hidden_states.shape[1]
        padding = hidden_states.new_zeros(1, words, hidden_states.shape[-1])
        features = encoder_hidden_states.new_zeros(1, count, encoder_hidden_states.shape[-1])
        out = self.model(
            hidden_states=torch.cat([padding, hidden_states], dim=1),
            encoder_hidden_states=torch.cat([encoder_hidden_states, features], dim=1),
            return_dict=False,
            **rest,
        )
        return out[0][:, words:]


class JoyEdit(Wrapped):
    """Two items [N, 2, C, 1, H, W]: the reference, and the picture that is made."""

    def forward(self, hidden_states: Tensor, reference: Tensor, **rest: Tensor) -> Tensor:
        items = torch.stack([reference, hidden_states], dim=1).unsqueeze(3)
        return self.model(items, return_dict=False, **rest)[0][:, -1, :, 0]


class JoyEditPlus(Wrapped):
    """Patches [N, L, C, 1, 2, 2] of the picture that is made, then of the reference."""

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
