"""A picture that was painted on, as latents in the middle of the run that made it."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..codegen.errors import SessionError
from ..masks import difference_mask
from ..module import SparseModule
from ..session import Session
from .clean import shares
from .decoders import Decoded, RecordingOrDense, kept_of
from .encoders import EncoderEdits
from .lattice import Lattice
from .trail import Trail

_INVISIBLE = 2.5 / 127.5
"""A picture in -1..1 that went through 8 bits is this near."""
_FAR = 0.02
"""Of their spread: latents from which a decoder's inputs are further away are not those decoded."""


class Painting:
    """Of the picture that ``decoder`` made of the last latents of a ``trail``.

    A pipeline scales, shifts and packs latents in its own way before it decodes them. The recorded
    pair tells how, so that what was painted is encoded, undone likewise, and added to the recorded
    latents of a step as the scheduler adds a picture to noise (SDEdit, Meng et al., 2022).
    """

    def __init__(
        self,
        pipe: Any,
        decoder: SparseModule,
        encoder: SparseModule | None,
        lattice: Lattice,
        trail: Trail,
        decoded: Decoded,
        image: Any,
    ) -> None:
        """Raises :class:`SessionError` for a video."""
        self._scheduler, self._lattice = pipe.scheduler, lattice
        self._decoder: Any = decoder
        self._encoder = None if encoder is None else encoder._engine
        self._latents, self._given = trail.latents[-1], decoded.given
        before = decoded.output.sample if hasattr(decoded.output, "sample") else decoded.output
        before = before[0] if isinstance(before, tuple) else before
        if len(before) != len(self._latents) or (before.dim() > 4 and before.shape[2] > 1):
            raise SessionError("a painted picture is no video: edit videos by masks")
        if not hasattr(pipe, "image_processor"):
            raise SessionError(f"a {type(pipe).__name__} has no image_processor to read `image` by")
        self._before = before.reshape(len(before), before.shape[1], *before.shape[-2:]).clamp(-1, 1)
        height, width = before.shape[-2:]
        image = pipe.image_processor.preprocess(image, height=height, width=width)
        self._after = image.to(before).expand_as(self._before)

    @cached_property
    def mask(self) -> Tensor:
        """bool [H, W] of pixels: what was painted."""
        return difference_mask(self._before, self._after, _INVISIBLE)

    def begun(self, time: float, recorded: Tensor) -> Tensor:
        """The ``recorded`` latents of the step at ``time``, painted on."""
        times = self._scheduler.timesteps
        step = times[(times.double() - time).abs().argmin()].reshape(1)
        share, _ = shares(self._scheduler, step, recorded.device)
        return recorded + (float(share) * self._change).to(recorded.dtype)

    @cached_property
    def _change(self) -> Tensor:
        """Of the latents without noise."""
        old, new = self._both_encoded()
        change, given = (self._arranged(own) for own in (new - old, self._given))
        return change / self._scale(given)

    def _both_encoded(self) -> tuple[Tensor, Tensor]:
        """The picture before, and what is new of the one after."""
        host = self._encoder
        if host is None:
            return self._encoded(self._before), self._encoded(self._after)
        recording = RecordingOrDense("encoder", Session(host))
        with host.mode_of(recording):
            before = self._encoded(self._before)
        known = kept_of(recording)
        edits = EncoderEdits(host, known.calls) if isinstance(known, Session) else None
        with host.mode_of(edits):
            return before, self._encoded(self._after)

    @torch.no_grad()
    def _encoded(self, picture: Tensor) -> Tensor:
        """The most probable latents."""
        if self._given.dim() == 5:
            picture = picture[:, :, None]
        made = self._decoder.encode(picture.to(self._given.dtype))
        if hasattr(made, "latent_dist"):
            return made.latent_dist.mode()  # type: ignore[no-any-return]
        latents: Tensor = getattr(made, "latents", getattr(made, "latent", made))
        return latents

    def _arranged(self, values: Tensor) -> Tensor:
        """Latents of the decoder, as the sampler has them: tokens are squares of them, channel by
        channel. Raises :class:`SessionError`."""
        if self._lattice.is_packed:
            flat = values.reshape(*values.shape[:2], *values.shape[-2:])
            side = flat.shape[-1] // self._lattice.grid[1]
            values = F.pixel_unshuffle(flat, side).flatten(2).transpose(1, 2)
        if values.shape[1:] != self._latents.shape[1:]:
            raise self._unknown()
        return values

    def _scale(self, given: Tensor) -> Tensor:
        """How much larger each channel is where it is decoded; it may also be shifted there."""
        channel = 2 if self._latents.dim() == 3 else 1
        others = [axis for axis in range(self._latents.dim()) if axis != channel]
        x, y = (own.double() - own.double().mean(others, True) for own in (self._latents, given))
        scale = (x * y).sum(others, True) / x.square().sum(others, True)
        error = (y - scale * x).square().mean(others)
        if bool((error > _FAR**2 * y.square().mean(others)).any()):
            raise self._unknown()
        return scale

    def _unknown(self) -> SessionError:
        return SessionError(
            f"what was decoded, {list(self._given.shape)}, are not the sampler's last latents, "
            f"{list(self._latents.shape)}, scaled and packed, so that no painted picture can be "
            "taken over: paint through an img2img pipeline"
        )
