"""Exported sparse weights: how many inputs a layer keeps is chosen after the export."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sparsify.codegen.nm import nm_mask
from torch import Tensor, nn

import sparsify
from sparsify import BaselineError, ConfigError, FolderError, SparseWeights
from sparsify.weights import NM

SIZE, M, V = 16, 4, 16
MASK = torch.zeros(SIZE, SIZE, dtype=torch.bool)
MASK[4:9, 5:9] = True


def network() -> nn.Module:
    """Convolutions, one of them grouped, and a linear layer; the first and the last are dense."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.Conv2d(32, 32, 3, padding=1),
        nn.SiLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 48, 1),
        nn.Conv2d(48, 3, 3, padding=1),
    ).eval()


def pictures() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    picture = torch.randn(1, 3, SIZE, SIZE)
    return picture, torch.where(MASK, picture + 1, picture)


def results(sparse: Any) -> list[Tensor]:
    """Of a record, an update and a commit."""
    picture, edited = pictures()
    output, baseline = sparse.record(picture)
    updated, new = sparse.update(baseline, edited, mask=MASK, commit=True)
    return [output, updated, sparse.update(new, picture, mask=MASK)]


@pytest.fixture(
    scope="module", params=["pt2", "onnx", pytest.param("aoti", marks=pytest.mark.deep)]
)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net"
    weights = SparseWeights(network(), 2, M, V)
    sparsify.sparsify(weights.model, backend="eager").export(
        path, pictures()[0], format=request.param
    )
    return path


@torch.no_grad()
@pytest.mark.parametrize(("layers", "changed"), [(None, "134"), (["[34]"], "34")])
@pytest.mark.parametrize("n", [1, M])
def test_a_folder_is_the_model_with_the_same_pattern(
    folder: Path, n: int, layers: Any, changed: str
) -> None:
    loaded, weights = sparsify.load(folder), SparseWeights(network(), 2, M, V)
    sparse = sparsify.sparsify(weights.model, backend="eager")
    loaded.use(n, layers=layers)
    weights.use(n, M, layers=layers)
    for got, want in zip(results(loaded), results(sparse), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    ours, theirs = loaded.report(), sparse.report()
    assert (ours.macs_update, ours.macs_dense) == (theirs.macs_update, theirs.macs_dense)
    assert loaded.layers == {name: NM(n if name in changed else 2, M, V) for name in "134"}


@torch.no_grad()
def test_the_exported_pattern_comes_back(folder: Path) -> None:
    loaded = sparsify.load(folder)
    first = results(loaded)
    _, baseline = loaded.record(pictures()[0])
    loaded.use(1)
    assert not torch.equal(results(loaded)[0], first[0])
    with pytest.raises(BaselineError, match="other weights"):
        loaded.update(baseline, pictures()[1], mask=MASK)
    loaded.use(2)
    assert all(map(torch.equal, results(loaded), first))
    assert torch.equal(loaded.update(baseline, pictures()[1], mask=MASK), first[1])


def test_what_cannot_be_is_refused(folder: Path) -> None:
    loaded = sparsify.load(folder)
    for n in (0, M + 1):
        with pytest.raises(ConfigError, match=f"n={n}: 1 was exported with m={M}"):
            loaded.use(n)
    with pytest.raises(ConfigError, match=r"layers='0'.* 1, 3, 4"):
        loaded.use(1, layers="0")
    assert set(loaded.layers.values()) == {NM(2, M, V)}


def test_models_that_are_read_again_are_the_same_ones(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    loaded = sparsify.load(copy)
    if loaded.signature.format != "onnx":
        pytest.skip("nothing is read again")
    with (copy / "update.onnx").open("ab") as file:
        file.write(b" ")
    with pytest.raises(FolderError, match=r"update\.onnx"):
        loaded.use(1)
    assert set(loaded.layers.values()) == {NM(2, M, V)}


def test_numbers_are_weights_of_the_folder(folder: Path) -> None:
    """Whoever runs the graphs alone gives others to `constants`."""
    held = load_file(folder / "weights.safetensors")
    assert {name: int(n) for name, n in held.items() if name.startswith("kept.")} == {
        "kept.1": 2,
        "kept.3": 2,
        "kept.4": 2,
    }
    signature = sparsify.load(folder).signature
    graphs = signature.graphs
    if signature.format == "aoti":
        pytest.skip("its graphs are compiled packages, which are given the same constants")
    if "constants" not in graphs:  # ONNX: initializers of each graph
        assert "kept.1" in graphs["update"].weights
        return
    graph = graphs["constants"]
    program = torch.export.load(folder / graph.file).module()
    held["kept.1"] = torch.tensor(1, dtype=torch.int32)
    made = program(tuple(held[name] for name in graph.weights))
    dense = held["1.parametrizations.weight.original"]
    kept = dense * nm_mask(dense, 1, M, V)
    assert any(x.shape == kept.shape and torch.equal(x, kept) for x in made)
