"""The CPU benchmarks on tiny networks: what they write, and what is not measured twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify.codegen import opaque, products
from sparsify.codegen.prepack import prepack_conv
from torch import nn

from benchmarks import edits, reuse, sparse_networks, store
from benchmarks.floors import Rates, weight_bytes
from benchmarks.masks import MASKS
from benchmarks.measure import SHARES
from benchmarks.nodes import measure_nodes
from benchmarks.speed import main

NAME = "autoencoder-kl-decoder"
COMMAND = [NAME, "--quick", "--rounds", "1", "--nodes"]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """In the process that measures as in this one: figures with other threads are others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("benchmarks")
    assert main([*COMMAND, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def result(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / f"{NAME}.json").read_text())
    return loaded


def test_json_says_what_was_measured(result: dict[str, Any]) -> None:
    assert result["environment"].keys() >= {"cpu", "threads", "torch", "date", "commit", "settings"}
    assert result["options"]["backend"] == "eager" and result["dense_compiled"] is None
    edits = {(row["share"], row["mask"]) for row in result["edits"]}
    assert edits == {(s, kind) for s in SHARES for kind in MASKS if s < 1 or kind == "square"}
    assert result["error_of_full_edit"] <= 1e-4
    assert result["peak_mib"]["record"] > result["peak_mib"]["dense eager"] > 0
    for time in (result["dense_eager"], result["record"], *_times(result)):
        assert 0 < time["min_ms"] <= time["median_ms"] <= time["max_ms"]


def _times(result: dict[str, Any]) -> list[dict[str, float]]:
    return [row[key] for row in result["edits"] for key in ("update_eager", "plan")]


def test_floors(result: dict[str, Any]) -> None:
    rate, memory = result["machine"]["dense_macs_s"], result["machine"]["read_bytes_s"]
    for row in result["edits"]:
        size = (result["update_weights_mib"] + row["tables_mib"]) * 2**20
        floor = 1e3 * max(row["macs"] / rate, size / memory)
        assert row["floor_ms"] == pytest.approx(floor)
        assert row["over_floor"] == pytest.approx(row["update_eager"]["median_ms"] / floor)
    whole = result["edits"][-1]
    assert whole["macs"] == result["macs_dense"] and whole["mac_bound"] == 1


def test_nodes_add_up(result: dict[str, Any]) -> None:
    edit = next(row for row in result["edits"] if row["share"] == result["options"]["nodes"])
    nodes = result["nodes"]
    assert sum(node["macs"] for node in nodes) == pytest.approx(edit["macs"], rel=0.1)
    lost = [node["lost_ms"] for node in nodes]
    assert lost == sorted(lost, reverse=True)


def test_plot_is_a_png(out: Path) -> None:
    assert (out / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_what_is_measured_is_skipped(
    out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (out / f"{NAME}.json").stat().st_mtime_ns
    assert main([*COMMAND, "--out", str(out)]) == 0
    assert (out / f"{NAME}.json").stat().st_mtime_ns == before
    started: list[str] = []
    monkeypatch.setattr(
        "benchmarks.speed.run_apart", lambda name, *_: bool(started.append(name)) or True
    )
    main([*COMMAND, "--out", str(out), "--again"])
    main([NAME, "--quick", "--rounds", "2", "--out", str(out)])  # other settings
    assert started == [NAME, NAME]


def test_failure_of_one_network_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "false")
    assert main([*COMMAND, "--out", str(tmp_path)]) == 1


@pytest.fixture(scope="module")
def reused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reuse")
    command = ["--quick", "--rounds", "1", "--networks", "dit-xl-2-256", "--out", str(folder)]
    assert reuse.main(command) == 0
    return folder


def _part(folder: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / f"reuse-{name}.json").read_text())
    assert loaded["environment"].keys() >= {"cpu", "torch", "diffusers", "commit"}
    assert loaded["options"]["backend"] == "eager"
    return loaded


@pytest.mark.deep
def test_quality_of_schedules(reused: Path) -> None:
    """More calls are closer to the full run, and the shares are those of the calls."""
    rows = _part(reused, "quality")["rows"]
    for method in ("calibrated", "equally spaced, held", "equally spaced, linear", "DPM-Solver++"):
        own = {row["calls"]: row for row in rows if row["method"] == method}
        assert list(own) == [7, 4, 3]
        assert own[7]["psnr"] > own[4]["psnr"] > own[3]["psnr"] > 10
        assert all(row["macs_share"] == calls / 20 for calls, row in own.items())
    shares = {row["method"]: row["macs_share"] for row in rows}
    assert 4 / 20 < shares["DeepCache"] < shares["encoder propagation"] < 1
    assert (reused / "reuse-quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.deep
def test_time_of_a_schedule(reused: Path) -> None:
    result = _part(reused, "time")
    assert result["share_of_calls"] == len(result["keys"]) / result["steps"] == 0.2
    assert 0 < result["share_of_time"] < 1


@pytest.mark.deep
def test_encoder_propagation_from_single_steps(reused: Path) -> None:
    (row,) = _part(reused, "propagation")["rows"]
    (run,) = row["schedules"]
    assert row["error"] < 1e-4 and len(run["keys"]) == 9
    dense, key, other = (row["times"][name]["median_s"] for name in ("dense", "key", "reuse"))
    assert run["speedup"] == pytest.approx(50 * dense / (9 * key + 41 * other))
    macs = row["macs"]
    assert macs["key"] == macs["dense"] > macs["reuse"]
    assert run["mac_bound"] == pytest.approx(50 / (9 + 41 * macs["reuse"] / macs["dense"]))


@pytest.mark.deep
def test_space_and_time_together(reused: Path) -> None:
    result = _part(reused, "space")
    rows = {row["run"]: row for row in result["rows"]}
    space, time = rows["space"]["macs_share"], rows["time"]["macs_share"]
    assert rows["both"]["macs_share"] == pytest.approx(space * time) and time == 0.2
    assert min(rows[name]["psnr"] for name in ("space", "time", "both")) > 20
    assert rows["space"]["psnr"] > result["psnr_of_recorded"]


@pytest.mark.deep
def test_networks_with_sparse_weights(tmp_path: Path) -> None:
    sparse_networks.main(["ddpm-church-256", "--quick", "--rounds", "1", "--out", str(tmp_path)])
    (network,) = json.loads((tmp_path / "sparse-networks.json").read_text())
    assert network["network"] == "ddpm-church-256" and network["options"]["narrow"]
    assert network["layers"] > network["refused"] > 0
    shares, macs = network["shares"], network["macs"]
    assert shares["all"] < min(shares["space"], shares["time"], shares["weights"])
    assert shares["time"] == pytest.approx(9 / 50)
    assert shares["weights"] == pytest.approx(macs["call, sparse weights"])
    assert set(network["times"]) == {
        kind + kept for kind in ("call", "update", "run") for kept in ("", ", sparse weights")
    }
    assert all(own > 0 for own in network["speedups"].values())


@pytest.mark.deep
def test_edits_from_disk(tmp_path: Path) -> None:
    folders = ["--folder", str(tmp_path), "--out", str(tmp_path)]
    assert store.main(["--quick", "--rounds", "1", "--steps", "3", *folders]) == 0
    result = json.loads((tmp_path / "store.json").read_text())
    assert result["is_equal"] and result["fetches_of_one_edit"] == {"late": 1, "ahead": 2}
    assert result["baselines_in_memory"] > 0
    for name in ("on disk", "on disk, cached"):
        assert result["read_s"][name] > 0 and result["times"][name]["of_memory"] > 0.5


@pytest.mark.parametrize("grid", [(8, 8), (64, 64), (24, 96)])
@pytest.mark.parametrize("share", SHARES)
def test_masks_have_one_share(grid: tuple[int, int], share: float) -> None:
    counts = {kind: int(make(grid, share).sum()) for kind, make in MASKS.items()}
    assert counts["square"] == counts["strokes"]
    assert counts["square"] == pytest.approx(share * grid[0] * grid[1], rel=0.35, abs=1)


def test_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    rates = Rates(macs=10.0, bytes=2.0)
    assert rates.floor(100, 4) == (10.0, "macs")
    assert rates.floor(10, 4) == (2.0, "bytes")


@pytest.mark.parametrize("format", ["plain", "panels"])
def test_work_of_nodes(format: str) -> None:
    """A 3x3 convolution at 5 of 9 sites, with the weight plain or in panels, and a view."""
    module, graph = nn.Module(), torch.fx.Graph()
    weight = prepack_conv(torch.randn(16, 4, 3, 3), format=format)
    module.register_buffer("weight", weight)
    x, table = graph.placeholder("x"), graph.placeholder("table")
    arguments = (x, None, table, graph.get_attr("weight"), None)
    conv = graph.call_function(products.gather_conv, arguments, {"format": format})
    graph.output(graph.call_function(torch.transpose, (conv, 1, 2)))
    traced = torch.fx.GraphModule(module, graph)
    inputs = torch.randn(2, 4, 9), torch.zeros(5, 9, dtype=torch.long)
    rows = measure_nodes(traced, inputs, Rates(1.0, 1.0), rounds=1)
    by_name = {row["operator"]: row for row in rows}
    assert weight_bytes(traced) == 4 * 16 * 4 * 9
    assert by_name["gather_conv"]["macs"] == 2 * 5 * 16 * 4 * 9
    assert by_name["gather_conv"]["bytes"] == 4 * (2 * 4 * 9 + 16 * 4 * 9 + 2 * 16 * 5) + 8 * 5 * 9
    assert by_name["transpose"]["macs"] == by_name["transpose"]["bytes"] == 0


def test_work_of_another_edit_is_its_own() -> None:
    """Queries at 5 sites, then at 7, of the same graph."""
    graph = torch.fx.Graph()
    query, key, value = map(graph.placeholder, ("query", "key", "value"))
    graph.output(graph.call_function(opaque.attention, (query, key, value)))
    module = torch.fx.GraphModule(nn.Module(), graph)
    for sites in (5, 7):
        inputs = torch.randn(2, sites, 4), torch.randn(2, 9, 4), torch.randn(2, 9, 4)
        (row,) = measure_nodes(module, inputs, Rates(1.0, 1.0), rounds=1)
        assert row["macs"] == 2 * sites * 9 * (4 + 4)


def test_edits_of_prompts(tmp_path: Path) -> None:
    assert edits.main(["--quick", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "edits.json").read_text())
    assert result["environment"].keys() >= {"cpu", "torch", "diffusers", "commit"}
    for row in result["rows"]:
        assert row["is_recorded_outside"]
        assert 0 < row["mask"] < 1 and 0 < row["macs_share"] <= 1
    by = {row["calls"]: row["macs_share"] for row in result["rows"]}
    assert by[5] < by[10]
    assert (tmp_path / "edits.png").read_bytes().startswith(b"\x89PNG")
