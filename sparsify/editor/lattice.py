"""The sites of a picture's latents, and how they lie in what each model of a pipeline is given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch.nn.functional as F
from torch import Tensor

from ..codegen.errors import GridError
from ..codegen.tables import dilate
from ..passes.layout import Grid
from ..scope import Arrangement


@dataclass(frozen=True)
class Lattice:
    """The sites of the latents [N, C, H, W], [N, C, T, H, W] or [N, T, C, H, W] that a sampler goes
    through, or, where these are tokens [N, T*H*W, C], of the tokens. Frames share their sites."""

    grid: Grid
    frames: int = 1
    is_packed: bool = False
    """Are the latents tokens?"""

    @staticmethod
    def of(latents: Sequence[int], decoded: Sequence[int] | None) -> Lattice:
        """For latents of this shape, of which ``decoded`` is the shape that a decoder was given.

        Raises :class:`GridError` where these do not tell how tokens lie.
        """
        if len(latents) in (4, 5):
            return Lattice((latents[-2], latents[-1]))
        if decoded is not None and len(decoded) in (4, 5):
            frames = decoded[2] if len(decoded) == 5 else 1
            for side in (1, 2, 4):
                grid = decoded[-2] // side, decoded[-1] // side
                if frames * prod(grid) == latents[1]:
                    return Lattice(grid, frames, is_packed=True)
        raise GridError(
            f"the latents are tokens {list(latents)}, and no decoder was called that would tell "
            "how they lie in the picture: record without output_type='latent'"
        )

    def fitted(self, mask: Tensor) -> Tensor:
        """bool [H, W] or [N, H, W]: the sites that hold anything of a mask of any size."""
        return resized(mask, self.grid)

    def by_site(self, latents: Tensor) -> Tensor:
        """[N, C, H, W]: all that stands at a site, of every frame, in one axis."""
        if self.is_packed:
            latents = latents.mT.unflatten(-1, (self.frames, *self.grid))
        return latents.flatten(1, -3)

    def blended(self, mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
        """Latents ``new`` inside ``mask`` and ``old`` outside."""
        inside = for_items(mask, len(new))
        if not self.is_packed:
            return blended(inside, new, old)
        inside = inside[..., None, :, :].expand(*inside.shape[:-2], self.frames, *self.grid)
        return new.where(inside.flatten(-3)[..., None].to(new.device), old)


@dataclass(frozen=True)
class Pictures:
    """Inputs that have the axes of a picture or a video, of whatever size."""

    lattice: Lattice
    is_stepped: bool

    def picture(self, values: Tensor) -> Tensor:
        picture: Tensor = F.adaptive_max_pool2d(values.abs(), self.lattice.grid)
        return picture

    def mask(self, mask: Tensor, grid: Grid, items: int) -> Tensor:
        own = resized(mask, grid)
        return for_items(own, items) if self.is_stepped else for_frames(own, items)


@dataclass(frozen=True)
class Row:
    """Tokens of the picture, frame by frame, and then others, which no edit reaches."""

    scope: Lattice
    lattice: Lattice
    """Of the tokens, and of the latents that the scope is of."""
    dilation: int
    """Sites by which masks are widened, which a model that sees a row of tokens cannot do."""
    is_stepped: bool = True

    def picture(self, values: Tensor) -> Tensor:
        shape = self.lattice.frames, *self.lattice.grid
        own: Tensor = values[..., 0, : prod(shape)].unflatten(-1, shape)
        picture: Tensor = F.adaptive_max_pool2d(own.flatten(1, 2).abs(), self.scope.grid)
        return picture

    def mask(self, mask: Tensor, grid: Grid, items: int) -> Tensor:
        wide = dilate(resized(for_items(mask, items), self.lattice.grid), self.dilation)
        shape = *wide.shape[:-2], self.lattice.frames, *self.lattice.grid
        row = wide[..., None, :, :].expand(shape).flatten(-3)
        return F.pad(row, (0, grid[1] - row.shape[-1]))[..., None, :]


def arrangement_of(
    lattice: Lattice,
    decoded: Sequence[int] | None,
    grid: Grid,
    dilation: Callable[[Grid], int],
    is_stepped: bool,
) -> Arrangement:
    """Of a model whose inputs lie on ``grid``; ``decoded`` as for :meth:`Lattice.of`, whose errors
    are raised for tokens that are packed for the model alone, and are not those of the picture."""
    if grid[0] != 1 or lattice.grid[0] == 1 < lattice.grid[1]:
        return Pictures(lattice, is_stepped)
    tokens = lattice if lattice.is_packed else Lattice.of((1, grid[1], 1), decoded)
    return Row(lattice, tokens, dilation(tokens.grid))


def blended(inside: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """[N, ..., H, W]: ``new`` inside, and ``old`` outside of bool [H, W] or [N, H, W]."""
    shape = *inside.shape[:-2], *[1] * (new.dim() - 3), *inside.shape[-2:]
    return new.where(inside.reshape(shape).to(new.device), old)


def resized(mask: Tensor, grid: Grid) -> Tensor:
    """bool [..., H, W]: the sites of a ``grid`` that a marked one of another grid touches."""
    if mask.shape[-2:] == grid:
        return mask
    flat = mask.reshape(-1, 1, *mask.shape[-2:]).float()
    touched: Tensor = F.adaptive_max_pool2d(flat, grid) > 0
    return touched.reshape(*mask.shape[:-2], *grid)


def for_items(mask: Tensor, items: int) -> Tensor:
    """[H, W], or [M, H, W] for ``items``, in the halves of guidance one after the other; of a
    larger M, whose halves are these, what any of them marks."""
    if mask.dim() == 2 or len(mask) == items:
        return mask
    if items % len(mask) == 0:
        return mask.repeat(items // len(mask), 1, 1)
    if len(mask) % items == 0:
        halves: Tensor = mask.unflatten(0, (-1, items))
        return halves.any(0)
    return mask.any(0)


def for_frames(mask: Tensor, items: int) -> Tensor:
    """[H, W], or [M, H, W] for ``items``. A decoder may be given frames in chunks, of which nothing
    tells whose they are: all follow what any mask marks, and have recorded latents elsewhere."""
    if mask.dim() == 2 or len(mask) in (items, 2 * items):
        return for_items(mask, items)
    return mask.any(0)
