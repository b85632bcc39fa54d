"""Networks with more inputs than a picture, or other outputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.agreement import Example, Grid
from tests.nets.base import C, conv


@dataclass
class Result:
    """What a network may return."""

    picture: Tensor
    mean: Tensor


"""Networks that the library was not prepared for: what people write, in few lines each.

A network maps ``x`` [N, 8, H, W] and perhaps more; :data:`NETS` makes an example of each on any
grid whose sides its ``multiple`` divides.
"""


torch.export.register_dataclass(Result)


class Outputs(nn.Module):
    """Several results in a container."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.conv = kind, conv()

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if self.kind == "tuple":
            return y, (y.flatten(2).mT, None), [x, y.mean((2, 3))]
        if self.kind == "dict":
            return {"wide": F.interpolate(y, scale_factor=2.0), "y": y, "first": y[:, 0]}
        if self.kind == "transposed":
            return y.mT, y.permute(2, 3, 0, 1), y.permute(0, 2, 3, 1), y.view(-1), x
        return Result(y, y.square().mean())


class Prompted(nn.Module):
    """A picture, a prompt [N, 5] and keywords."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave, self.norm = conv(), conv(), nn.GroupNorm(2, C)
        self.style, self.tokens = nn.Linear(5, 2 * C), nn.Linear(5, 4 * C)

    def forward(self, x: Tensor, prompt: Tensor, *, strength: Tensor, flip: bool = False) -> Tensor:
        scale, shift = self.style(prompt)[:, :, None, None].chunk(2, 1)
        y = self.norm(self.enter(x)) * (1 + scale) + shift * strength
        pair = self.tokens(prompt).view(-1, 2, 2 * C).chunk(2, -1)
        tokens = F.scaled_dot_product_attention(y.flatten(2).mT, *pair)
        y = y + (-tokens if flip else tokens).mT.reshape(y.shape)
        return self.leave(y), y.square().mean((2, 3))


class Inpaint(nn.Module):
    """A picture and the hole in it, which the network itself resizes."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.down, self.leave = conv(C + 1), conv(stride=2), conv(C + 1)

    def forward(self, x: Tensor, hole: Tensor) -> Tensor:
        y = F.relu(self.enter(torch.cat((x * (1 - hole), hole), 1)))
        low = F.interpolate(hole, size=(x.shape[2] // 2, x.shape[3] // 2))
        low = torch.where(low > 0.5, self.down(y), 0.1 * self.down(y))
        y = F.interpolate(low, scale_factor=2.0)
        return x * (1 - hole) + hole * self.leave(torch.cat((y, hole), 1))


class TwoGrids(nn.Module):
    """Two pictures, the second twice as coarse."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse, self.norm = conv(), conv(), nn.GroupNorm(2, C)
        self.leave = conv(2 * C)

    def forward(self, x: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
        low = F.silu(self.norm(self.coarse(low)))
        up = F.interpolate(low, scale_factor=2.0, mode="bilinear")
        return self.leave(torch.cat((self.fine(x), up), 1)), low + F.avg_pool2d(x, 2)


class TokensAndPicture(nn.Module):
    """A picture, and tokens of its patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.mlp, self.leave = nn.Conv2d(C, C, 2, 2), nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        tokens = tokens + self.patch(x).flatten(2).mT
        return self.leave(F.gelu(self.mlp(tokens)))


OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    **{k: (lambda k=k: Outputs(k), ()) for k in ("tuple", "dict", "dataclass", "transposed")},
    "prompted": (Prompted, ("prompt", "strength", "flip")),
    "inpainting": (Inpaint, ("hole",)),
    "two grids": (TwoGrids, ("low",)),
    "tokens and picture": (TokensAndPicture, ("tokens",)),
}
"""Networks with other inputs or outputs, and the names of the inputs besides ``x``."""


def other(name: str, edits: tuple[str, ...] = ("x",), batch: int = 2) -> Example:
    torch.manual_seed(0)
    build, more = OTHERS[name]
    possible = {
        "prompt": torch.randn(batch, 5),
        "strength": torch.tensor(0.3),
        "flip": True,
        "hole": (torch.rand(batch, 1, 8, 12) < 0.4).float(),
        "low": torch.randn(batch, C, 4, 6),
        "tokens": torch.randn(batch, 24, C),
    }
    inputs = {"x": torch.randn(batch, C, 8, 12), **{n: possible[n] for n in more}}
    grids: dict[str, Grid | None] = {"tokens": (4, 6)} if "tokens" in more else {}
    return Example(build(), inputs, edits, grids)
