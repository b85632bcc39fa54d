"""Every function of a plan: in ONNX, for masks that it was not exported with, and at home."""

from __future__ import annotations

import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify.codegen import geometry as g
from sparsify.codegen import kernel_map
from sparsify.codegen import tables as t
from sparsify.codegen.export import onnx
from sparsify.codegen.export.programs import program, pure
from torch import Tensor
from torch.fx import Graph, GraphModule

GRID = (6, 9)
WINDOW = g.Window(GRID, (3, 5), (3, 3), (2, 2), (1, 1))
MOVES: dict[str, g.Geometry] = {
    "window": WINDOW,
    "transposed": g.TransposedWindow(GRID, (12, 18), (4, 4), (2, 2), (1, 1), (1, 1)),
    "nearest": g.Nearest(GRID, (12, 18), (0.5, 0.5)),
    "bilinear": g.Resize(GRID, (9, 13), (6 / 9, 9 / 13), "bilinear"),
    "reflect": g.Pad(GRID, (8, 11), (1, 1), "reflect"),
    "replicate": g.Pad(GRID, (8, 11), (1, 1), "replicate"),
    "circular": g.Pad(GRID, (8, 11), (1, 1), "circular"),
    "zeros": g.Pad(GRID, (8, 11), (1, 1), "constant"),
    "same": g.Same(GRID),
    "roll": g.Pad(GRID, GRID, (2, -3), "circular"),
    "flip": g.Pad(GRID, GRID, (1 - GRID[0], 0), step=(-1, 1)),
    "bicubic": g.Resize(GRID, (9, 13), (6 / 9, 9 / 13), "bicubic"),
    "antialiased": g.Resize(GRID, (4, 5), (6 / 4, 9 / 5), "bilinear, antialiased"),
    "average": g.Resize(GRID, (4, 5), (1.0, 1.0), "average"),
}


def everything(mask: Tensor) -> dict[str, Tensor]:
    """The results of all table functions for ``mask`` [H, W], by name."""
    sites = t.active_sites(mask)
    results = {
        "active_sites": sites,
        "dilate": t.dilate(mask, 2),
        "finer": t.grid_mask(mask, (12, 18)),
        "coarser": t.grid_mask(mask, (4, 4)),
        "union": t.union(mask, t.dilate(mask, 1)),
        "space_sites": t.space_sites(sites, GRID, 2, 3, 1),
        "blend_weights": t.blend_weights(MOVES["bilinear"], sites),  # type: ignore[arg-type]
        "cubic_weights": t.blend_weights(MOVES["bicubic"], sites),  # type: ignore[arg-type]
        "moved": t.moved(mask, (2, -1, 0), (1, 3, 3)),
        "shuffle_phase": t.shuffle_phase(MOVES["nearest"], sites, (2, 2)),  # type: ignore[arg-type]
        "source_sites": t.source_sites(MOVES["same"], sites),
        "divisor": t.pool_divisor(WINDOW, None),
        "whole map": t.kernel_map(WINDOW, None, None)[0],
    }
    for name, move in MOVES.items():
        grown = t.grow(mask, move)
        out = t.active_sites(grown)
        results[f"grow {name}"] = grown
        results[f"map {name}"], results[f"halo {name}"] = t.kernel_map(move, sites, out)
    return results


@pytest.mark.parametrize("native", [True, False])
def test_tables_ignore_the_default_device(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = torch.rand(GRID, generator=torch.Generator().manual_seed(0)) < 0.3
    wanted = everything(mask)
    kernel_map._axes.cache_clear()
    if not native:
        monkeypatch.setattr(kernel_map, "takes", lambda *sites: False)
    with torch.device("meta"):
        got = everything(mask)
    for name, want in wanted.items():
        assert got[name].device.type == "cpu" and torch.equal(got[name], want), name


def as_graph(function: Callable[..., dict[str, Tensor]], names: list[str]) -> Any:
    graph = Graph()
    results = graph.call_function(function, (graph.placeholder("mask"),))
    graph.output([graph.call_function(operator.getitem, (results, name)) for name in names])
    return pure("plan", GraphModule(torch.nn.Module(), graph), ["mask"], names, {})


def test_plans_run_in_onnxruntime(tmp_path: Path) -> None:
    some = torch.rand(GRID, generator=torch.Generator().manual_seed(0)) < 0.3
    names = list(everything(some))
    function = as_graph(everything, names)
    onnx.write(program(function, {"mask": some}), function, tmp_path / "m", tmp_path / "w", {})
    run = onnx.read(tmp_path / "m")
    corner = torch.zeros(GRID, dtype=torch.bool)
    corner[0, 0] = True
    for mask in (
        some,
        ~some,
        torch.zeros_like(some),
        torch.ones_like(some),
        corner,
        corner.flip(0),
    ):
        wanted = everything(mask)
        for name, got in zip(names, run([mask]), strict=True):
            want = wanted[name]
            assert got.shape == want.shape and got.dtype == want.dtype, name
            assert torch.equal(got, want), name
