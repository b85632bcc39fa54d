"""Blocks that are no attention: patches, columns, gates, kernels of the picture's own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from tests.agreement import Grid
from tests.nets.base import C, conv


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
