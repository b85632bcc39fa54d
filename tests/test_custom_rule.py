"""A rule for a made-up operator, as ``docs/rules.md`` shows it."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from sparsify import sparsify
from tests.small import corner

PAGE = Path(__file__).parent.parent / "docs" / "rules.md"


def tone_curve(image: Tensor, curve: list[float]) -> Tensor:
    """A polynomial of every value, plus a tenth of the mean of the channels."""
    value = sum((c * image**i for i, c in enumerate(curve)), torch.zeros_like(image))
    return value + 0.1 * image.mean(1, keepdim=True)


torch.library.define("studio::tone_curve", "(Tensor image, float[] curve) -> Tensor")
torch.library.impl("studio::tone_curve", "CompositeExplicitAutograd", tone_curve)
torch.library.register_fake("studio::tone_curve", lambda image, curve: torch.empty_like(image))


class Graded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(torch.ops.studio.tone_curve(self.enter(x), [0.1, 0.8, 0.1]))


def updated(model: nn.Module) -> tuple[float, tuple[str, ...]]:
    """The largest error of an exact update, and the operators that were computed whole."""
    sparse = sparsify(model, policy="exact", backend="eager")
    x = torch.randn(2, 3, 16, 16)
    _, baseline = sparse.record(x)
    edited = torch.where(corner(), torch.randn_like(x), x)
    with torch.no_grad():
        error = (sparse.update(baseline, edited, mask=corner()) - model(edited)).abs().max()
    return float(error), tuple(node.operator for node in sparse.report().fallbacks)


def test_the_page_on_rules_is_true() -> None:
    torch.manual_seed(0)
    model = Graded().eval()
    error, fallbacks = updated(model)
    assert error < 1e-5
    assert "studio.tone_curve" in fallbacks
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    exec(compile(code[0], str(PAGE), "exec"), {})
    error, fallbacks = updated(model)
    assert error < 1e-5
    assert not fallbacks
