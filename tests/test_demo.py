"""The demo's pure functions; the demo itself runs by ``make demo``."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from examples import demo
from sparsify import difference_mask


@pytest.mark.parametrize("stroke", demo.STROKES)
@pytest.mark.parametrize("seed", range(4))
def test_a_stroke_covers_what_was_asked_for(stroke: tuple[float, float, int], seed: int) -> None:
    fraction, amount, _ = stroke
    height = torch.zeros(1, 1, 128, 128)
    painted = demo.paint_stroke(height, fraction, amount, seed)
    changed = difference_mask(height, painted)
    assert float(changed.float().mean()) == pytest.approx(fraction, abs=0.003)
    assert float((painted * amount).amin()) >= 0  # raised or lowered, never both
    assert torch.equal(painted, demo.paint_stroke(height, fraction, amount, seed))


def test_psnr() -> None:
    reference = torch.zeros(1, 1, 4, 4)
    image = reference.clone()
    image[..., :2, :] = 0.2
    upper = torch.zeros(4, 4, dtype=torch.bool)
    upper[:2] = True
    assert demo.psnr(reference, reference, 1) == math.inf
    assert demo.psnr(image, reference, 2, upper) == pytest.approx(20)
    assert demo.psnr(image, reference, 2) == pytest.approx(20 + 10 * math.log10(2))
    assert demo.psnr(image, reference, 2, ~upper) == math.inf


def test_retouch_stays_within_its_radius() -> None:
    photo = torch.full((1, 3, 32, 32), 0.4)
    changed = difference_mask(photo, demo.retouch(photo, (10, 20, 5)), threshold=0).nonzero()
    assert 40 < len(changed) < math.pi * 5**2
    assert float((changed - torch.tensor([10, 20])).double().norm(dim=1).max()) < 5


def test_summary_is_json_even_without_any_difference(tmp_path: Path) -> None:
    costs = {"dense_ms": 4.0, "update_ms": 1.0}
    measurement = demo.Measurement(
        network="n",
        policy="exact",
        edit_fraction=0.5,
        speedup_vs_dense=4.0,
        macs_dense=8,
        macs_update=2,
        psnr_db=math.inf,
        psnr_inside_db=60.0,
        **costs,
    )
    path = tmp_path / "summary.json"
    demo.write_summary([measurement, replace(measurement, psnr_db=50.0)], path)
    first, second = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert (first["psnr_db"], second["psnr_db"]) == (None, 50.0)
    assert demo.summary_table([measurement]).row_count == 1
