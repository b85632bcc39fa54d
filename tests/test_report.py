"""The report: states, reasons, MACs, table and picture."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn

from sparsify import BaselineError, sparsify
from tests.small import corner, small_inputs, small_unet


class WithRoll(nn.Module):
    """A convolution, then an operator without a rule, then another convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).roll(1))


def test_states_and_macs() -> None:
    sparse = sparsify(small_unet(), backend="eager", dilate=0, dense_share=0.0)
    sparse.record(*small_inputs())
    sparse.plan(corner())
    report = sparse.report()
    by_name = {node.name: node for node in report}
    enter = by_name["conv2d"]
    assert (enter.state, enter.grid, enter.macs) == ("packed", (16, 16), 256 * 16 * 27)
    assert enter.macs_now == round(enter.macs * 12 / 256)
    assert enter.source.split(":")[0].endswith("small.py")
    assert report.macs_update < 0.2 * report.macs_dense
    assert {n.operator for n in report if n.state == "static"} >= {"aten.linear", "aten.cos"}
    assert sum(map(report.share, ("packed", "dense", "static", "fallback"))) == pytest.approx(1)


def test_fallback_is_named_and_right() -> None:
    torch.manual_seed(0)
    model, x = WithRoll().eval(), torch.randn(1, 3, 8, 8)
    sparse = sparsify(model, backend="eager", policy="exact")
    _, baseline = sparse.record(x)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[0, 7] = True
    edited = torch.where(mask, 1.0, x)
    update = sparse.update(baseline, edited, mask=mask)
    torch.testing.assert_close(update, model(edited))
    first, second = sparse.report().fallbacks
    assert (first.operator, first.reason) == ("aten.roll", "mirrors or turns what is no picture")
    assert "the arrangement of roll is unknown" in second.reason


def test_dense_grids_say_so() -> None:
    sparse = sparsify(small_unet(), backend="eager", dense_share=0.9)
    sparse.record(*small_inputs())
    dense = [node for node in sparse.report() if node.state == "dense"]
    assert {node.grid for node in dense} == {(8, 8)}
    assert {node.reason for node in dense} == {"one of the smallest grids"}


def test_table_and_picture(tmp_path: Path) -> None:
    sparse = sparsify(small_unet(), backend="eager", dilate=1)
    with pytest.raises(BaselineError, match="record a run first"):
        sparse.report()
    sparse.record(*small_inputs())
    sparse.plan(corner())
    console = Console(record=True, width=140, file=(tmp_path / "out").open("w"))
    console.print(sparse.report())
    printed = console.export_text()
    assert "share of dense" in printed
    assert "scaled_dot_product" in printed
    sparse.report().picture(tmp_path / "masks.png")
    assert Image.open(tmp_path / "masks.png").size[1] == 192
