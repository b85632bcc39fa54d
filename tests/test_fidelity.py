"""The benchmark of fidelity on tiny networks, and laws of the distance that it measures by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks import fidelity
from benchmarks.frechet import CHANNELS, Features, frechet

seeds, widths = st.integers(0, 2**31), st.integers(1, 6)


def features(seed: int, width: int, count: int) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    mixed = torch.randn(width, width, generator=drawn, dtype=torch.double)
    return torch.randn(count, width, generator=drawn, dtype=torch.double) @ mixed + mixed[0]


@given(seeds, widths, st.integers(2, 20))
def test_equal_sets_have_no_distance(seed: int, width: int, count: int) -> None:
    own = features(seed, width, count)
    shuffled = own[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]
    assert frechet(own, shuffled) == pytest.approx(0, abs=1e-9)


@given(seeds, seeds, widths, st.integers(2, 20), st.integers(2, 20))
def test_distance_is_symmetric(first: int, second: int, width: int, n: int, m: int) -> None:
    own, other = features(first, width, n), features(second, width, m)
    distance = frechet(own, other)
    assert distance == pytest.approx(frechet(other, own), rel=1e-9, abs=1e-9)
    assert distance > -1e-9


@given(seeds, widths, st.data())
def test_distance_of_gaussians_with_diagonal_covariance(
    seed: int, width: int, data: st.DataObject
) -> None:
    numbers = st.lists(st.floats(0, 10), min_size=width, max_size=width).map(torch.tensor)
    means, deviations = ([data.draw(numbers).double() for _ in range(2)] for _ in range(2))
    sets = []
    for mean, deviation, count in zip(means, deviations, (width + 2, width + 9), strict=True):
        drawn = features(seed, width, count)
        columns = torch.linalg.qr(drawn - drawn.mean(0)).Q  # centred, with a covariance of one
        sets.append(mean + deviation * columns * (count - 1) ** 0.5)
    want = (means[0] - means[1]).square().sum() + (deviations[0] - deviations[1]).square().sum()
    assert frechet(*sets) == pytest.approx(float(want), abs=1e-6)


def test_features_of_pictures_do_not_depend_on_their_batch() -> None:
    pictures = torch.rand(18, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = Features()(pictures)
    assert found.shape == (18, CHANNELS) and found.dtype == torch.double
    torch.testing.assert_close(found[17:], Features()(pictures[17:]), rtol=1e-4, atol=1e-4)


@pytest.mark.deep
def test_fidelity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--quick", "--out", str(tmp_path)]
    assert fidelity.main(command) == 0
    rows = _rows(tmp_path)
    for name in fidelity.PLANS:
        dense, *sparse = rows[name]
        assert dense["frechet"] == 0 < dense["frechet_to_other_noise"]
        found = [(row["weights"], row["steps"]) for row in sparse]
        names = ["2:4", "16:2:4", "16:8:16", "16:8:16 for 0.6 of MACs"]
        assert found == [(own, steps) for own in names for steps in (0, 3)]
        for row in sparse:
            assert row["error"] > 0 and row["frechet"] > 0 and row["layers"] > 0
            assert 5 < row["psnr"] < 100
        assert (tmp_path / f"fidelity-{name}.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.delattr(fidelity, "fine_tune")  # what is there is not made again
    assert fidelity.main(command) == 0 and _rows(tmp_path) == rows


def _rows(folder: Path) -> dict[str, list[dict[str, Any]]]:
    loaded = json.loads((folder / "fidelity.json").read_text())
    for own in loaded.values():
        assert own["environment"].keys() >= {"cpu", "torch", "date", "commit"}
    return {name: own["rows"] for name, own in loaded.items()}
