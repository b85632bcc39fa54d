"""Networks of the benchmarks, small, in every format: ``make test-deep``; minutes each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel
from hypothesis import given, settings
from torch.utils._pytree import tree_leaves

from benchmarks.networks import Network, small
from sparsify import sparsify
from sparsify.masks import centred_square
from sparsify.oracle import relative
from tests.networks import MaskRecipe, Recipe, recipes
from tests.reference import FIXED, Fixed
from tests.test_export import FEW_MASKS, agrees_with_the_oracle
from tests.test_sampled_folders import samples_as_its_model_does

SHARES = (0.0, 0.01, 0.05, 0.3, 1.0)
ALLOWED = 1e-4
"""Relative to the largest magnitude of an output."""

_DIT = Network(
    "dit",
    lambda: DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, num_layers=2, sample_size=16
    ),
    lambda: (
        (torch.randn(1, 4, 16, 16),),
        {"timestep": torch.tensor([7]), "class_labels": torch.tensor([3])},
    ),
    dilate=1,
)
_SMALL = small()
NETWORKS = {
    "dit": _DIT,
    **{name: _SMALL[name] for name in ("terrain", "stable-diffusion-1.5", "real-esrgan-x4")},
}

CHILD = """
import sys, torch, sparsify
folder, calls, results = sys.argv[1:]
torch.set_num_threads(1)
loaded, (recorded, edits) = sparsify.load(folder), torch.load(calls)
output, baseline = loaded.record(*recorded[0], **recorded[1])
leaves = torch.utils._pytree.tree_leaves
updates = [loaded.update(baseline, *a, mask=mask, **k) for (a, k), mask in edits]
torch.save([leaves(output), *map(leaves, updates)], results)
"""


@pytest.mark.parametrize("format", ["pt2", "onnx", "aoti"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_fresh_process_follows(name: str, format: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]
    options = {"dilate": network.dilate, "dense_above": 1.0, "backend": "eager"}
    sparse = sparsify(network.build().eval(), **options)
    args, kwargs = network.inputs()
    output, baseline = sparse.record(*args, **kwargs)
    wanted, edits = [tree_leaves(output)], []
    for share in SHARES:
        mask = centred_square(baseline.grid, share)
        mask = mask if share else torch.zeros_like(mask)
        edited = (torch.where(mask, torch.randn_like(args[0]), args[0]), *args[1:])
        wanted.append(tree_leaves(sparse.update(baseline, *edited, mask=mask, **kwargs)))
        edits.append(((edited, kwargs), mask))
    sparse.export(tmp_path / "folder", *args, format=format, **kwargs)
    torch.save(((args, kwargs), edits), tmp_path / "calls")
    paths = [str(tmp_path / part) for part in ("folder", "calls", "results")]
    subprocess.run([sys.executable, "-c", CHILD, *paths], check=True)
    results = torch.load(tmp_path / "results")
    errors = [relative(got, want) for got, want in zip(results, wanted, strict=True)]
    print(f"{name} {format}: {max(errors):.1e}")
    assert all(error <= ALLOWED for error in errors)  # a maximum would pass over NaN


@settings(max_examples=8)
@given(recipe=recipes(max_steps=3), fixed=FIXED, masks=FEW_MASKS)
def test_aoti_equals_the_oracle(
    tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, fixed: Fixed, masks: list[MaskRecipe]
) -> None:
    path = tmp_path_factory.mktemp("aoti") / "folder"
    agrees_with_the_oracle(path, "aoti", recipe, fixed, masks)


@pytest.mark.parametrize(
    ("format", "part"),
    [("onnx", "encoder"), ("aoti", "encoder"), ("aoti", "deep"), ("pt2", "deep")],
)
def test_folders_sample_by_a_schedule(format: Any, part: str, tmp_path: Path) -> None:
    samples_as_its_model_does(format, part, tmp_path)
