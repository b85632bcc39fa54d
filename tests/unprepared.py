"""Networks that nobody prepared the library for: what people write, in few lines each.

A network maps ``x`` [N, 8, H, W] and perhaps more; :data:`NETS` makes an example of each on any
grid whose sides its ``multiple`` divides.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from tests.agreement import Example, Grid

C = 8
"""Channels of every picture."""
Operator = Callable[[Tensor], Tensor]


def conv(c_in: int = C, c_out: int = C, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, padding=kernel // 2, **options)


class Between(nn.Module):
    """An operator without weights between two convolutions."""

    def __init__(self, operator: Operator) -> None:
        super().__init__()
        self.operator = operator
        with torch.no_grad():
            channels = operator(torch.zeros(1, C, 8, 12)).shape[1]
        self.enter, self.leave = conv(), conv(channels)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.leave(self.operator(self.enter(x)))
        return result


# -- operators without weights ------------------------------------------------------------------


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


def cumulative(x: Tensor) -> Tensor:
    return (x.flatten(2).cumsum(-1) / 10).view_as(x)


def fourier(x: Tensor) -> Tensor:
    spectrum = torch.fft.rfft2(x, norm="ortho")
    return torch.fft.irfft2(spectrum * spectrum.abs().tanh(), s=x.shape[-2:], norm="ortho")


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


def channel_attention(x: Tensor) -> Tensor:
    """Over channels: the product sums over the sites (XCiT, Restormer)."""
    tokens = F.normalize(x.flatten(2), dim=-1)
    return ((tokens @ tokens.transpose(1, 2)).softmax(-1) @ x.flatten(2)).view_as(x)


def linear_attention(x: Tensor) -> Tensor:
    tokens = x.flatten(2).transpose(1, 2)
    query, key = tokens.softmax(-1), tokens.softmax(1)
    result = query @ (key.transpose(1, 2) @ tokens)
    return result.transpose(1, 2).reshape(x.shape)


def correlated(x: Tensor) -> Tensor:
    """Local correlation: each site with its 3 x 3 neighbours (RAFT, PWC)."""
    around = F.unfold(x, 3, padding=1).view(x.shape[0], C, 9, *x.shape[2:])
    return (around * x[:, :, None]).sum(1)


def strips(x: Tensor) -> Tensor:
    """Means of rows and of columns as gates (coordinate attention)."""
    return x * x.mean(3, keepdim=True).sigmoid() * x.mean(2, keepdim=True).sigmoid()


def coordinates(x: Tensor) -> Tensor:
    """CoordConv."""
    y, x_ = (torch.linspace(-1, 1, size, dtype=x.dtype) for size in x.shape[2:])
    grid = torch.stack(torch.meshgrid(y, x_, indexing="ij")).expand(x.shape[0], -1, -1, -1)
    return torch.cat((x, grid), 1)


def quantised(x: Tensor) -> Tensor:
    """The nearest of a few vectors for each site (VQ-VAE)."""
    book = (torch.arange(6 * C, dtype=x.dtype) * 1.7).sin().view(6, C)
    tokens = x.permute(0, 2, 3, 1).reshape(-1, C)
    nearest = torch.cdist(tokens, book).argmin(1)
    code = book[nearest].view(x.shape[0], *x.shape[2:], C).permute(0, 3, 1, 2)
    return x + (code - x)


def one_hot_of_argmax(x: Tensor) -> Tensor:
    return F.one_hot(x.argmax(1), C).permute(0, 3, 1, 2).to(x.dtype)


def sorted_channels(x: Tensor) -> Tensor:
    values, _ = x.sort(1)
    return torch.cat((values, x.topk(2, 1).values), 1)


def unpooled(x: Tensor) -> Tensor:
    values, indices = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(values, indices, 2)


def smoothed(x: Tensor) -> Tensor:
    """A blur with a fixed kernel in reflected borders, by groups (anti-aliased pooling)."""
    taps = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype) / 4
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), kernel, stride=2, groups=x.shape[1])


def warped(x: Tensor) -> Tensor:
    theta = torch.tensor([[[0.9, 0.1, 0.0], [-0.1, 1.0, 0.1]]], dtype=x.dtype)
    theta = theta.expand(x.shape[0], 2, 3)
    where = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, where, align_corners=False)


def by_item(x: Tensor) -> Tensor:
    """A loop over the batch, stacked again."""
    return torch.stack([item - item.amax(0) for item in x])


def whitened(x: Tensor) -> Tensor:
    return (x - x.mean((2, 3), keepdim=True)) / (x.std((2, 3), keepdim=True) + 1e-3)


def by_variance(x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, 1, keepdim=True)
    return (x - mean) * (variance + 1e-3).rsqrt()


def complex_product(x: Tensor) -> Tensor:
    z = torch.complex(x[:, :4], x[:, 4:])
    z = z * z.conj() + z
    return torch.cat((z.real, z.imag), 1)


def hole_filling(x: Tensor) -> Tensor:
    outside = (x - x.mean(1, keepdim=True)).abs() > 0.3
    return torch.where(outside, x.clamp(-1, 1), torch.zeros_like(x))


def conv_over_tokens(x: Tensor) -> Tensor:
    """One long row of sites (Mamba's local convolution)."""
    kernel = torch.tensor([0.2, 0.5, 0.3], dtype=x.dtype).expand(C, 1, 3)
    return F.conv1d(x.flatten(2), kernel, padding=1, groups=C).view_as(x)


OPERATORS: dict[str, Operator] = {
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
    "cumsum": cumulative,
    "cumsum of rows": lambda x: x.cumsum(2) / 4,
    "cumsum of channels": lambda x: x.cumsum(1).cumprod(1).tanh(),
    "fourier": fourier,
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
    "channel attention": channel_attention,
    "linear attention": linear_attention,
    "correlation": correlated,
    "strips": strips,
    "strip pools": lambda x: (
        x * F.adaptive_avg_pool2d(x, (None, 1)) + F.adaptive_max_pool2d(x, (1, None))
    ),
    "coordinates": coordinates,
    "quantised": quantised,
    "one hot": one_hot_of_argmax,
    "sorted": sorted_channels,
    "unpooled": unpooled,
    "blurred": smoothed,
    "warped": warped,
    "by item": by_item,
    "whitened": whitened,
    "variance of channels": by_variance,
    "complex": complex_product,
    "where": hole_filling,
    "conv over tokens": conv_over_tokens,
    "softmax of sites": lambda x: x.flatten(2).softmax(-1).view_as(x) * x,
    "norm of sites": lambda x: x / (x.flatten(1).norm(dim=1)[:, None, None, None] + 1),
    "extremes": lambda x: (x - x.amin((2, 3), keepdim=True)) / (x.amax() - x.amin() + 1),
    "bicubic": lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"),
    "area": lambda x: F.interpolate(x, size=(4, 6), mode="area"),
    "bilinear antialiased": lambda x: F.interpolate(
        x, scale_factor=0.5, mode="bilinear", antialias=True
    ),
    "pooled to 2x2": lambda x: F.interpolate(F.adaptive_avg_pool2d(x, 2), size=x.shape[2:]),
    "pyramid pools": lambda x: torch.cat(
        [x, *(F.interpolate(F.avg_pool2d(x, s), size=x.shape[2:]) for s in (2, 4))], 1
    ),
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "max of channels": lambda x: torch.cat(
        (x.max(1, keepdim=True).values, x.logsumexp(1, keepdim=True), x.argmin(1, True).to(x)), 1
    ),
    "lp pool": lambda x: F.lp_pool2d(x, 2, 2),
    "fractional crop": lambda x: F.interpolate(x, size=(5, 7), mode="bilinear"),
    "batch mixed": lambda x: x + x.mean(0, keepdim=True) + x.flip(0),
    "glu": lambda x: F.glu(torch.cat((x, x.square()), 1), 1),
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


# -- networks -----------------------------------------------------------------------------------


class Patches(nn.Module):
    """ViT-style patches of 2 x 4 by einops, tokens, and back."""

    def __init__(self, size: Grid = (2, 2), order: str = "(p1 p2 c)") -> None:
        super().__init__()
        self.size, self.order = size, order
        width = C * size[0] * size[1]
        self.embed, self.norm = nn.Linear(width, 16), nn.LayerNorm(16)
        self.leave = nn.Linear(16, width)

    def forward(self, x: Tensor) -> Tensor:
        sizes = dict(zip(("p1", "p2"), self.size, strict=True))
        h = x.shape[2] // self.size[0]
        tokens = rearrange(x, f"b c (h p1) (w p2) -> b (h w) {self.order}", **sizes)
        tokens = self.leave(F.gelu(self.norm(self.embed(tokens))))
        return rearrange(tokens, f"b (h w) {self.order} -> b c (h p1) (w p2)", h=h, **sizes)


class UnfoldConv(nn.Module):
    """A convolution of columns, then a transposed one by fold."""

    def __init__(self, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.options = kernel, {"stride": stride, "padding": kernel // 2}
        self.weight = nn.Parameter(torch.randn(C, C * kernel**2) / 8)

    def forward(self, x: Tensor) -> Tensor:
        columns = F.unfold(x, self.kernel, **self.options)
        columns = self.weight.t() @ F.gelu(self.weight @ columns)
        return F.fold(columns, x.shape[-2:], self.kernel, **self.options)


class Attention(nn.Module):
    """Two heads on tokens; ``keys`` heads of keys, by ``mode``; perhaps a gate."""

    def __init__(self, mode: str = "plain", keys: int = 2, gated: bool = False) -> None:
        super().__init__()
        self.mode, self.keys = mode, keys
        self.norm, self.query = nn.LayerNorm(C), nn.Linear(C, C)
        self.pair, self.out = nn.Linear(C, 2 * keys * 4), nn.Linear(C, C)
        self.gate = nn.Linear(C, C) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(rearrange(x, "b c h w -> b (h w) c"))
        query = rearrange(self.query(tokens), "b l (n d) -> b n l d", d=4)
        pair = rearrange(self.pair(tokens), "b l (two n d) -> two b n l d", two=2, d=4)
        y = rearrange(self._attend(query, pair[0], pair[1]), "b n l d -> b l (n d)")
        if self.gate is not None:
            y = y * self.gate(tokens).sigmoid()
        return x + rearrange(self.out(y), "b (h w) c -> b c h w", h=x.shape[2])

    def _attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self.mode == "enable_gqa":
            return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
        heads = 2 // self.keys
        if self.mode == "repeats":
            key, value = (t.repeat_interleave(heads, 1) for t in (key, value))
        elif self.mode == "broadcast":
            return ((query @ key.mT) / 2).softmax(-1) @ value
        elif self.mode == "einsum":
            scores = torch.einsum("bnld,bnmd->bnlm", query, key)
            return torch.einsum("bnlm,bnmd->bnld", (scores / 2).softmax(-1), value)
        elif self.mode == "cosine":
            query, key = F.normalize(query, dim=-1), F.normalize(key, dim=-1)
        elif self.mode == "causal":
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return F.scaled_dot_product_attention(query, key, value)


class Windows(nn.Module):
    """Window attention with a bias by relative position; ``shift`` rolls both axes and masks."""

    def __init__(self, grid: Grid, window: int = 4, shift: int = 0, einops: bool = False) -> None:
        super().__init__()
        self.window, self.shift, self.einops = window, shift, einops
        self.qkv, self.out = nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.bias = nn.Parameter(torch.randn((2 * window - 1) ** 2, 2) / 4)
        at = torch.stack(torch.meshgrid(*[torch.arange(window)] * 2, indexing="ij")).flatten(1)
        offset = at[:, :, None] - at[:, None, :] + window - 1
        self.register_buffer("index", offset[0] * (2 * window - 1) + offset[1])
        self.register_buffer("allowed", self._allowed(grid) if shift else None)

    def _allowed(self, grid: Grid) -> Tensor:
        """-100 between sites that the roll made neighbours."""
        cuts = (slice(0, -self.window), slice(-self.window, -self.shift), slice(-self.shift, None))
        region = torch.zeros(1, *grid, 1)
        for number, (rows, columns) in enumerate((r, c) for r in cuts for c in cuts):
            region[:, rows, columns] = number
        region = self._cut(region).squeeze(-1)
        return (region[:, None] - region[:, :, None]).ne(0) * -100.0

    def _cut(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N * windows, window^2, C]."""
        n, h, w, c = x.shape
        x = x.view(n, h // self.window, self.window, w // self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, self.window**2, c)

    def _join(self, windows: Tensor, shape: torch.Size) -> Tensor:
        n, h, w, c = shape
        x = windows.view(n, h // self.window, w // self.window, self.window, self.window, c)
        return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(n, h, w, c)

    def forward(self, x: Tensor) -> Tensor:
        """[N, H, W, C] -> [N, H, W, C]."""
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        pattern = "b (y p) (x q) c -> (b y x) (p q) c"
        size = {"p": self.window, "q": self.window}
        windows = rearrange(x, pattern, **size) if self.einops else self._cut(x)
        qkv = self.qkv(windows).reshape(*windows.shape[:2], 3, 2, C // 2).permute(2, 0, 3, 1, 4)
        scores = qkv[0] @ qkv[1].transpose(-2, -1) / 2
        scores = scores + self.bias[self.index].permute(2, 0, 1)
        if self.allowed is not None:
            count = self.allowed.shape[0]
            scores = scores.unflatten(0, (-1, count)) + self.allowed[:, None]
            scores = scores.flatten(0, 1)
        y = self.out((scores.softmax(-1) @ qkv[2]).transpose(1, 2).reshape(windows.shape))
        if self.einops:
            back = "(b y x) (p q) c -> b (y p) (x q) c"
            y = rearrange(y, back, b=x.shape[0], y=x.shape[1] // self.window, **size)
        else:
            y = self._join(y, x.shape)
        return torch.roll(y, (self.shift, self.shift), (1, 2)) if self.shift else y


class Swin(nn.Module):
    """Two whole blocks on tokens [N, H*W, C], the second shifted."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid, self.enter = grid, conv()
        self.windows = nn.ModuleList(Windows(grid, 4, shift) for shift in (0, 2))
        self.norms = nn.ModuleList(nn.LayerNorm(C) for _ in range(4))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(C, 16), nn.GELU(), nn.Linear(16, C)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.enter(x).flatten(2).transpose(1, 2)
        for i, (windows, mlp) in enumerate(zip(self.windows, self.mlps, strict=True)):
            picture = self.norms[2 * i](tokens).view(-1, *self.grid, C)
            tokens = tokens + windows(picture).view(tokens.shape)
            tokens = tokens + mlp(self.norms[2 * i + 1](tokens))
        return tokens.transpose(1, 2).reshape(x.shape)


class OnLastAxis(nn.Module):
    """Channels last around a part."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.enter, self.part = conv(), part

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(self.enter(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ResponseNorm(nn.Module):
    """Global response norm of ConvNeXt V2, channels last."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(1, 1, 1, channels))
        self.beta = nn.Parameter(torch.randn(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        size = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = size / (size.mean(-1, keepdim=True) + 1e-6)
        return self.gamma * (x * share) + self.beta + x


class ConvNeXt(nn.Module):
    """7 x 7 by channel, norm and products channels last, layer scale or response norm."""

    def __init__(self, response: bool = False) -> None:
        super().__init__()
        self.depthwise, self.norm = conv(kernel=7, groups=C), nn.LayerNorm(C, eps=1e-6)
        self.wide, self.thin = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
        self.response = ResponseNorm(4 * C) if response else nn.Identity()
        self.scale = nn.Parameter(torch.randn(C))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.scale * self.thin(self.response(F.gelu(self.wide(y))))
        return x + y.permute(0, 3, 1, 2)


class SqueezeExcite(nn.Module):
    """Channels gated by the mean of the picture."""

    def __init__(self, linear: bool = False) -> None:
        super().__init__()
        self.linear, self.conv = linear, conv()
        kind = nn.Linear if linear else lambda a, b: nn.Conv2d(a, b, 1)
        self.squeeze, self.excite = kind(C, 4), kind(4, C)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        mean = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        gate = self.excite(F.relu(self.squeeze(mean))).sigmoid()
        return x * gate.view(-1, C, 1, 1)


class Axial(nn.Module):
    """Attention along the rows, then along the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Linear(C, 3 * C), nn.Linear(C, 3 * C)

    def forward(self, x: Tensor) -> Tensor:
        rows = rearrange(x, "b c h w -> (b h) w c")
        x = x + rearrange(self._attend(self.rows(rows)), "(b h) w c -> b c h w", h=x.shape[2])
        columns = rearrange(x, "b c h w -> (b w) h c")
        y = self._attend(self.columns(columns))
        return x + rearrange(y, "(b w) h c -> b c h w", w=x.shape[3])

    def _attend(self, qkv: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(*qkv.chunk(3, -1))


class Involution(nn.Module):
    """Kernels made for each site, shared by the channels of a group."""

    def __init__(self, groups: int = 2, normed: bool = False) -> None:
        super().__init__()
        self.groups, self.normed = groups, normed
        self.kernel = conv(C, groups * 9, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        kernel = self.kernel(x).view(n, self.groups, 1, 9, h, w)
        kernel = kernel.softmax(3) if self.normed else kernel
        around = F.unfold(x, 3, padding=1).view(n, self.groups, c // self.groups, 9, h, w)
        return (kernel * around).sum(3).view(n, c, h, w)


class Deformable(nn.Module):
    """Samples where the picture itself says."""

    def __init__(self) -> None:
        super().__init__()
        self.flow, self.leave = conv(C, 2), conv()

    def forward(self, x: Tensor) -> Tensor:
        theta = torch.eye(2, 3, dtype=x.dtype)[None].expand(x.shape[0], 2, 3)
        grid = F.affine_grid(theta, list(x.shape), align_corners=False)
        flow = self.flow(x).permute(0, 2, 3, 1) / 10
        return self.leave(F.grid_sample(x, grid + flow, align_corners=False))


class PictureNorm(nn.Module):
    """Layer norm over [C, H, W]."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = conv(), nn.LayerNorm([C, *grid]), conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.relu(self.norm(self.enter(x))))


class SiteMixer(nn.Module):
    """MLP-Mixer: a product over the sites, then one over the channels."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        sites = grid[0] * grid[1]
        self.sites, self.channels = nn.Linear(sites, sites), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.sites(x.flatten(2)).view_as(x)
        return x + self.channels(x.flatten(2).mT).mT.reshape(x.shape)


class Latents(nn.Module):
    """Perceiver: a few learnt queries read the picture, and the picture reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 3, C))
        self.read, self.write = nn.Linear(C, 2 * C), nn.Linear(C, 2 * C)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).mT
        queries = self.queries.expand(x.shape[0], -1, -1)
        latents = F.scaled_dot_product_attention(queries, *self.read(tokens).chunk(2, -1))
        y = F.scaled_dot_product_attention(tokens, *self.write(latents).chunk(2, -1))
        return x + y.mT.reshape(x.shape)


class FewerKeys(nn.Module):
    """Keys of a coarser grid (PVT, SegFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.pair = nn.Linear(C, C), nn.Linear(C, 2 * C)
        self.coarse, self.norm = nn.Conv2d(C, C, 2, 2), nn.LayerNorm(C)

    def forward(self, x: Tensor) -> Tensor:
        pair = self.pair(self.norm(self.coarse(x).flatten(2).mT)).chunk(2, -1)
        y = F.scaled_dot_product_attention(self.query(x.flatten(2).mT), *pair)
        return x + y.mT.reshape(x.shape)


class Rotary(nn.Module):
    """Rotary positions of rows and columns as complex numbers."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        angles = torch.cartesian_prod(*(torch.arange(size) for size in grid)).float() / 3
        self.register_buffer("cos", angles.repeat_interleave(4, 1).cos())
        self.register_buffer("sin", angles.repeat_interleave(4, 1).sin())
        self.qkv = nn.Linear(C, 3 * C)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x.flatten(2).mT).chunk(3, -1)
        y = F.scaled_dot_product_attention(self._turn(query), self._turn(key), value)
        return x + y.mT.reshape(x.shape)

    def _turn(self, x: Tensor) -> Tensor:
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * self.cos + turned * self.sin


class Tied(nn.Module):
    """One weight as a convolution, its transpose, a product; and a buffer for each site."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.conv, self.again = conv(), conv()
        self.again.weight = self.conv.weight
        self.linear = nn.Linear(C, C)
        self.register_buffer("place", torch.randn(1, C, *grid))
        self.register_buffer("scale", torch.tensor(0.7), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.again(F.silu(self.conv(x) + self.place)) * self.scale
        y = F.conv_transpose2d(y, self.conv.weight, padding=1)
        y = F.linear(y.permute(0, 2, 3, 1), self.linear.weight.T, self.linear.bias)
        return F.conv2d(y.permute(0, 3, 1, 2), self.linear.weight[:, :, None, None])


class DynamicConv(nn.Module):
    """Kernels mixed by the picture's mean (CondConv): one weight for each item, by groups."""

    def __init__(self) -> None:
        super().__init__()
        self.route = nn.Linear(C, 3)
        self.weights = nn.Parameter(torch.randn(3, C, C, 3, 3) / 8)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[0]
        shares = self.route(x.mean((2, 3))).softmax(-1)
        weight = torch.einsum("nk,koihw->noihw", shares, self.weights).flatten(0, 1)
        y = F.conv2d(x.reshape(1, n * C, *x.shape[2:]), weight, padding=1, groups=n)
        return y.view_as(x)


@dataclass
class Result:
    """What a network may return."""

    picture: Tensor
    mean: Tensor


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


class Together(nn.Module):
    """Networks of one picture side by side: captured at once, which saves most of the time."""

    def __init__(self, parts: dict[str, nn.Module]) -> None:
        super().__init__()
        self.names, self.parts = list(parts), nn.ModuleList(parts.values())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: part(x) for name, part in zip(self.names, self.parts, strict=True)}


PICTURES: dict[str, Callable[[Grid], nn.Module]] = {
    "patches": lambda grid: Patches(),
    "patches 2x4": lambda grid: Patches((2, 4)),
    "patches, channels first": lambda grid: Patches((2, 2), "(c p1 p2)"),
    "unfold and fold": lambda grid: UnfoldConv(),
    "unfold and fold by 2": lambda grid: UnfoldConv(2, 2),
    "attention": lambda grid: Attention(),
    "attention, gated": lambda grid: Attention(gated=True),
    "attention, enable_gqa": lambda grid: Attention("enable_gqa", 1),
    "attention, repeats": lambda grid: Attention("repeats", 1),
    "attention, broadcast": lambda grid: Attention("broadcast", 1),
    "attention, einsum": lambda grid: Attention("einsum"),
    "attention, cosine": lambda grid: Attention("cosine"),
    "attention, causal": lambda grid: Attention("causal"),
    "windows": lambda grid: OnLastAxis(Windows(grid)),
    "windows, einops": lambda grid: OnLastAxis(Windows(grid, einops=True)),
    "windows, shifted": lambda grid: OnLastAxis(Windows(grid, shift=2)),
    "swin": Swin,
    "convnext": lambda grid: ConvNeXt(),
    "convnext v2": lambda grid: ConvNeXt(response=True),
    "squeeze excite": lambda grid: SqueezeExcite(),
    "squeeze excite, linear": lambda grid: SqueezeExcite(linear=True),
    "axial attention": lambda grid: Axial(),
    "involution": lambda grid: Involution(),
    "dynamic kernels": lambda grid: Involution(1, normed=True),
    "dynamic convolution": lambda grid: DynamicConv(),
    "deformable": lambda grid: Deformable(),
    "picture norm": PictureNorm,
    "mixer": SiteMixer,
    "latents": lambda grid: Latents(),
    "fewer keys": lambda grid: FewerKeys(),
    "rotary": Rotary,
    "tied": Tied,
    **{name: lambda grid, f=f: Between(f) for name, f in OPERATORS.items()},
}
"""What maps one picture to one; the sides of its grid are multiples of 4."""


def pictures(names: list[str], grid: Grid = (8, 12), batch: int = 1) -> Example:
    """Several networks of :data:`PICTURES` as one."""
    torch.manual_seed(0)
    model = Together({name: PICTURES[name](grid) for name in names})
    return Example(model, {"x": torch.randn(batch, C, *grid)})


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
