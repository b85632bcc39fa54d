"""Baselines as files, in other processes and in exported folders."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsify
from sparsify import Baseline, BaselineError, SparseModule, load_baseline, save_baseline
from tests.small import corner, small_inputs, small_unet

MASK = corner()


def recorded(**options: Any) -> tuple[SparseModule, Baseline]:
    options = {"backend": "eager", "dense_above": 1.0, "any_step": True, **options}
    sparse = sparsify.sparsify(small_unet(), **options)
    return sparse, sparse.record(*small_inputs())[1]


def edited() -> tuple[Tensor, ...]:
    image, *others = small_inputs()
    return torch.where(MASK, image + 1, image), *others


@pytest.mark.parametrize("kind", ["recorded", "committed", "restricted", "narrow"])
@torch.no_grad()
def test_a_file_gives_the_same_update(kind: str, tmp_path: Path) -> None:
    """In a module of its own, bit for bit, from no more bytes than the baseline has."""
    options = {"baseline_dtype": torch.bfloat16} if kind == "narrow" else {}
    sparse, baseline = recorded(**options)
    if kind == "committed":
        _, baseline = sparse.update(baseline, *edited(), mask=MASK, commit=True)
    if kind == "restricted":
        baseline = sparse.restrict(baseline, MASK)
    save_baseline(baseline, tmp_path / "baseline")
    loaded, (other, _) = load_baseline(tmp_path / "baseline"), recorded(**options)
    assert loaded.nbytes == baseline.nbytes and loaded.key == baseline.key
    want = sparse.update(baseline, *edited(), mask=MASK)
    assert torch.equal(other.update(loaded, *edited(), mask=MASK), want)


@torch.no_grad()
def test_an_exported_folder_updates_from_it(tmp_path: Path) -> None:
    """And a sparse module from what a folder recorded."""
    sparse, baseline = recorded()
    sparse.export(tmp_path / "folder", *small_inputs())
    folder = sparsify.load(tmp_path / "folder")
    save_baseline(baseline, tmp_path / "baseline")
    want = sparse.update(baseline, *edited(), mask=MASK)
    got = folder.update(load_baseline(tmp_path / "baseline"), *edited(), mask=MASK)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    save_baseline(folder.record(*small_inputs())[1], tmp_path / "other")
    got = sparse.update(load_baseline(tmp_path / "other"), *edited(), mask=MASK)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_what_no_longer_fits_is_refused(tmp_path: Path) -> None:
    sparse, baseline = recorded()
    save_baseline(baseline, tmp_path / "baseline")
    loaded = load_baseline(tmp_path / "baseline")
    other, _ = recorded(dilate=2)
    with pytest.raises(BaselineError, match="another model"):
        other.update(loaded, *edited(), mask=MASK)
    sparse.enter.weight.mul_(2)
    with pytest.raises(BaselineError, match="weights changed"):
        sparse.update(loaded, *edited(), mask=MASK)
    (tmp_path / "none").write_bytes(b"nothing")
    for name in ("none", "missing"):
        with pytest.raises(BaselineError, match="holds no baseline"):
            load_baseline(tmp_path / name)
    odd = replace(baseline, inputs=(object(), *baseline.inputs[1:]))
    with pytest.raises(BaselineError, match="which no file can hold"):
        save_baseline(odd, tmp_path / "odd")


@torch.no_grad()
def test_threads_share_a_baseline() -> None:
    sparse, baseline = recorded()
    kept = {name: value.clone() for name, value in baseline.values.items()}
    want, results = sparse.update(baseline, *edited(), mask=MASK), []

    def edit() -> None:
        with torch.no_grad():
            commit = sparse.update(baseline, *edited(), mask=MASK, commit=True)
            results.append(commit[0])

    threads = [threading.Thread(target=edit) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    for result in results:
        torch.testing.assert_close(result, want, rtol=1e-5, atol=1e-5)
    for name, value in baseline.values.items():
        assert torch.equal(value, kept[name])


class Styled(nn.Module):
    """Two conditions at one address, of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.style = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(4, 6)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        style = self.style(t)[:, :, None, None]
        return self.conv(x).relu() * style * style[:, :1]


@torch.no_grad()
def test_values_at_one_address_stay_apart(tmp_path: Path) -> None:
    sparse = sparsify.sparsify(Styled().eval(), backend="eager", dense_above=1.0)
    x, t = torch.randn(1, 3, 16, 16), torch.randn(1, 4)
    _, baseline = sparse.record(x, t)
    save_baseline(baseline, tmp_path / "baseline")
    edited = torch.where(MASK, x + 1, x)
    want = sparse.update(baseline, edited, t, mask=MASK)
    got = sparse.update(load_baseline(tmp_path / "baseline"), edited, t, mask=MASK)
    assert torch.equal(got, want)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        noise = torch.randn(1, 3, 16, 16)
        return self.conv(x) + noise, noise


@torch.no_grad()
def test_who_writes_to_outputs_changes_no_baseline() -> None:
    sparse = sparsify.sparsify(Noisy().eval(), backend="eager", dense_above=1.0)
    x = torch.randn(1, 3, 16, 16)
    _, baseline = sparse.record(x)
    want = [output.clone() for output in sparse.update(baseline, x + 1, mask=MASK)]
    for output in sparse.update(baseline, x + 1, mask=MASK):
        output.zero_()
    for got, own in zip(sparse.update(baseline, x + 1, mask=MASK), want, strict=True):
        assert torch.equal(got, own)
