"""Operators that move values: views, slices, rolls, writes, patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor

from tests.nets.base import Operator


def haar(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, 4C, H/2, W/2]."""
    a, b = x[..., ::2, ::2], x[..., ::2, 1::2]
    c, d = x[..., 1::2, ::2], x[..., 1::2, 1::2]
    bands = (a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d)
    return torch.cat(bands, 1) / 2


def inverse_haar(x: Tensor) -> Tensor:
    a, b, c, d = x.chunk(4, 1)
    y = x.new_zeros(x.shape[0], x.shape[1] // 4, 2 * x.shape[2], 2 * x.shape[3])
    y[..., ::2, ::2] = a + b + c + d
    y[..., ::2, 1::2] = a - b + c - d
    y[..., 1::2, ::2] = a + b - c - d
    y[..., 1::2, 1::2] = a - b - c + d
    return y / 2


def inverse_haar_of_stacks(x: Tensor) -> Tensor:
    """The same by stacking rows and columns."""
    a, b, c, d = x.chunk(4, 1)
    top = torch.stack((a + b + c + d, a - b + c - d), -1).flatten(-2)
    low = torch.stack((a + b - c - d, a - b - c + d), -1).flatten(-2)
    return torch.stack((top, low), -2).flatten(-3, -2) / 2


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y.mul_(0.5).add_(x.roll(1, 1))
    y[:, 0] = x[:, 1]
    y[:, 2:4] += 1
    y[:, :, 1:-1, 2:] *= 2
    return F.relu_(y.masked_fill_(y > 1, 0.5))


def channel_shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)


def shuffled_tokens(x: Tensor) -> Tensor:
    """Another order of the sites, and back."""
    order = (torch.arange(x.shape[2] * x.shape[3]) * 7.3).sin().argsort()
    tokens = F.gelu(x.flatten(2)[:, :, order]).cumsum(2)
    return tokens[:, :, order.argsort()].view_as(x)


def from_indices(x: Tensor) -> Tensor:
    """Rows and columns taken and written by index tensors."""
    rows, columns = torch.arange(0, x.shape[2], 3), torch.arange(x.shape[3]).flip(0)
    y = x.index_select(3, columns) + x
    return y.index_fill(2, rows, 0.25)


def masked_by_index(x: Tensor) -> Tensor:
    """A constant pattern of holes."""
    hole = torch.zeros(x.shape[2:], dtype=torch.bool)
    hole[torch.tensor([1, 3]), torch.tensor([2, 4])] = True
    return x.masked_fill(hole, -1.0)


def written_by_index(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, torch.tensor([0, 3])] = 1.0
    y[:, :, torch.tensor([1, 2]), torch.tensor([3, 1])] = 0.0
    return y


def differences(x: Tensor) -> Tensor:
    """Of neighbours, as total variation takes them."""
    right = F.pad(x[..., 1:] - x[..., :-1], (0, 1))
    below = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
    return torch.cat((right, below), 1)


def shifted(x: Tensor) -> Tensor:
    """Each group of channels moves another way (S2-MLP, TSM)."""
    y = x.clone()
    y[:, :2, :, 1:] = x[:, :2, :, :-1]
    y[:, 2:4, :, :-1] = x[:, 2:4, :, 1:]
    y[:, 4:6, 1:] = x[:, 4:6, :-1]
    y[:, 6:, :-1] = x[:, 6:, 1:]
    return y


def quadrants(x: Tensor) -> Tensor:
    """Quarters, each treated on its own, and joined."""
    halves = [half.chunk(2, 3) for half in x.chunk(2, 2)]
    rows = [torch.cat([quarter.softmax(1) for quarter in half], 3) for half in halves]
    return torch.cat(rows, 2)


def doubled(x: Tensor) -> Tensor:
    """Nearest resize by broadcasting."""
    n, c, h, w = x.shape
    return x[:, :, :, None, :, None].expand(n, c, h, 2, w, 2).reshape(n, c, 2 * h, 2 * w)


def tiled(x: Tensor) -> Tensor:
    return x.repeat(1, 1, 2, 1)


def by_item(x: Tensor) -> Tensor:
    """A loop over the batch, stacked again."""
    return torch.stack([item - item.amax(0) for item in x])


VIEWS: dict[str, Operator] = {
    "roll": lambda x: x.roll((1, -2), (2, 3)),
    "roll one axis": lambda x: x.roll(2, -1) - x,
    "roll flat": lambda x: x.roll(3),
    "flip": lambda x: x.flip(3) + x.flip((2, 3)),
    "turned": lambda x: torch.rot90(x, 1, (2, 3)),
    "transposed": lambda x: x.mT.softmax(1).mT,
    "haar": haar,
    "haar and back": lambda x: inverse_haar(haar(x).tanh()),
    "haar and back by stacks": lambda x: inverse_haar_of_stacks(haar(x).tanh()),
    "space to depth": lambda x: torch.cat(
        [x[..., i::2, j::2] for i in range(2) for j in range(2)], 1
    ),
    "strided rows": lambda x: x[:, :, ::2],
    "cropped": lambda x: x[..., 1:-1, 2:-3],
    "in place": in_place,
    "channel shuffle": channel_shuffle,
    "shuffled tokens": shuffled_tokens,
    "index": from_indices,
    "masked by index": masked_by_index,
    "written by index": written_by_index,
    "channels by index": lambda x: x[:, torch.tensor([3, 1, 7, 0, 0])],
    "differences": differences,
    "shifted": shifted,
    "quadrants": quadrants,
    "doubled": doubled,
    "doubled by repeats": lambda x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
    "tiled": tiled,
    "by item": by_item,
    "batch mixed": lambda x: x + x.mean(0, keepdim=True) + x.flip(0),
    "fold of unfold": lambda x: F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1),
    "patch means": lambda x: repeat(
        reduce(x, "b c (h p) (w q) -> b c h w", "mean", p=2, q=4),
        *("b c h w -> b c (h p) (w q)",),
        p=2,
        q=4,
    ),
    "patches mixed": lambda x: rearrange(
        rearrange(x, "b c (h p) (w q) -> b (p q) c h w", p=4, q=4).softmax(1),
        *("b (p q) c h w -> b c (h p) (w q)",),
        p=4,
    ),
    "grids mixed": lambda x: rearrange(
        rearrange(x, "b c (p h) (q w) -> b (p q) c h w", p=4, q=4).softmax(1),
        *("b (p q) c h w -> b c (p h) (q w)",),
        p=4,
    ),
}
