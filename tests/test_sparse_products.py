"""Weights that keep N of M inputs: their product, how they are stored, and the graphs of a model
that has them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sparsify.codegen import products
from sparsify.codegen.errors import OperandError
from sparsify.codegen.gather_matmul import cpp, listed
from sparsify.codegen.gather_matmul.reference import reference
from sparsify.codegen.geometry import reads_own
from sparsify.codegen.nm import nm_masked
from sparsify.codegen.prepack import FINE, loads_bound, prepack_conv, prepack_linear
from sparsify.passes.costs import Costs
from torch import Tensor, nn
from torch.nn.utils import parametrize

import sparsify
from benchmarks import weights
from sparsify import SparseModule

EPS = torch.finfo(torch.float32).eps
SEEDS = st.integers(0, 99)
SHARES = st.sampled_from(
    [(2, 4), (1, 4), (4, 8), (7, 8), (1, 16), (31, 32), (3, 5), (4, 4), (1, 1)]
)
pytestmark = pytest.mark.skipif(
    not cpp.runs(torch.device("cpu"), torch.float32), reason="there is no C++ compiler"
)


def within(depth: int) -> dict[str, float]:
    """As in ``test_gather_matmul``: two sums of ``depth`` products of values below 1."""
    return {"rtol": 0.0, "atol": 2 * (depth + 1) * depth**0.5 * EPS}


@given(
    SHARES,
    st.integers(1, 12),
    st.integers(1, 12),
    st.sampled_from([16, 32, 64]),
    st.integers(1, 9),
    st.integers(1, 40) | st.integers(235, 300),
    st.integers(1, 2),
    st.booleans(),
    SEEDS,
)
def test_kernel(
    share: tuple[int, int],
    groups: int,
    columns: int,
    v: int,
    taps: int,
    sites: int,
    batch: int,
    bias: bool,
    seed: int,
) -> None:
    """The product equals the one of the masked weight, and the dense kernel's to the bit: it adds
    what is left in the same order, and zeros change no sum."""
    (n, m), random = share, torch.Generator().manual_seed(seed)
    channels, width = groups * m, columns * 16

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random) * 2 - 1

    weight = nm_masked(drawn(width, channels, taps, 1), n, m, v)
    rows, shift = drawn(batch, 50, channels), drawn(width) if bias else None
    kernel_map = torch.randint(50, (sites, taps), generator=random)
    format = f"16:{n}:{m}"
    stored = prepack_conv(weight, format=format)
    assert stored.numel() * m * 16 == weight.numel() * n * 17
    got = torch.ops.sparsify.gather_matmul(rows, kernel_map, stored, shift, format)
    matrix = prepack_conv(weight, format="plain")
    depth = taps * channels
    torch.testing.assert_close(got, reference(rows, kernel_map, matrix, shift), **within(depth))
    if channels // m * n <= 1024 and depth <= 1024:  # else the kernel sums in other parts
        assert torch.equal(got, cpp.launch(rows, kernel_map, cpp.panels(matrix[0]), shift))


@given(SHARES, st.integers(1, 9), st.integers(1, 9), st.integers(1, 70), SEEDS)
def test_linear(share: tuple[int, int], groups: int, columns: int, sites: int, seed: int) -> None:
    (n, m), random = share, torch.Generator().manual_seed(seed)
    x, dense = (torch.rand(k, groups * m, generator=random) * 2 - 1 for k in (sites, columns * 16))
    weight, format = nm_masked(dense, n, m, 16), f"16:{n}:{m}"
    stored = prepack_linear(weight, format=format)
    got = products.linear(x, stored, None, format=format)
    torch.testing.assert_close(got, F.linear(x, weight), **within(groups * m))


def test_fewer_than_n_are_stored_with_zeros() -> None:
    weight = torch.zeros(32, 8)
    weight[3, 5] = 2.0
    x = torch.randn(5, 8)
    stored = prepack_linear(weight, format="16:2:4")
    assert torch.equal(products.linear(x, stored, None, format="16:2:4"), F.linear(x, weight))


@given(st.integers(0, 63), st.integers(0, 1), SEEDS)
def test_a_number_too_many_is_refused(row: int, column: int, seed: int) -> None:
    """Whichever it is: nothing that a weight has is dropped."""
    torch.manual_seed(seed)
    weight = nm_masked(torch.rand(32, 64) + 1, 2, 4, 16)
    zeros = (weight[16 * column] == 0).nonzero()[:, 0]
    weight[16 * column + seed % 16, zeros[row % len(zeros)]] = 1e-30
    with pytest.raises(OperandError, match="16:2:4: some 16 columns keep 3 of 4 inputs"):
        prepack_linear(weight, format="16:2:4")


@pytest.mark.parametrize(
    ("format", "match"),
    [
        ("16:3:2", "a weight is stored as plain or panels or 2:4 or 16:n:m"),
        ("16:0:4", "0 < n <= m"),
        ("8:2:4", "16:n:m"),
        ("16:2:3", "3 has to divide 64 inputs"),
    ],
)
def test_formats_that_are_none(format: str, match: str) -> None:
    with pytest.raises(OperandError, match=match):
        prepack_linear(torch.zeros(32, 64), format=format)


def test_lists_are_checked_before_they_are_followed() -> None:
    rows, index = torch.randn(1, 7, 8), torch.randint(7, (3, 2))
    weight = nm_masked(torch.randn(16, 8, 2), 2, 4, 16).permute(2, 1, 0).flatten(0, 1)
    stored = listed.pack(weight, 2, 4)
    listed.launch(rows, index, stored, None, 2, 4)
    for beyond in (-1, 8, 1 << 30):  # 8 is the second tap's
        damaged = stored.clone()
        damaged[128] = beyond
        with pytest.raises(OperandError, match="a list of inputs outside of the 8 channels"):
            listed.launch(rows, index, damaged, None, 2, 4)
    for weight, x in ((stored.float(), rows), (stored[None], rows), (stored, rows[..., :7])):
        with pytest.raises(OperandError, match="16:2:4 is int32 with one axis"):
            listed.launch(x, index, weight, None, 2, 4)


@pytest.mark.parametrize("operator", ["gather_matmul", "linear", "window_map"])
def test_operator_is_well_declared(operator: str) -> None:
    weight = nm_masked(torch.randn(32, 36), 2, 4, 16)
    stored = prepack_linear(weight, format="16:2:4")
    index, bias = torch.randint(10, (5, 9)), torch.randn(32)
    args: dict[str, tuple[Any, ...]] = {
        "gather_matmul": (torch.randn(2, 10, 4), index, stored, None, "16:2:4"),
        "linear": (torch.randn(2, 5, 36), stored, bias, "16:2:4"),
        "window_map": ([5, 7], [3, 4], [3, 3], [2, 2], [1, 1], [1, 1]),
    }
    torch.library.opcheck(getattr(torch.ops.sparsify, operator).default, args[operator])


@given(
    st.integers(3, 9),
    st.integers(3, 9),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(0, 2),
    st.integers(1, 2),
    st.sampled_from(["16:2:4", "plain"]),
)
def test_whole_maps(
    height: int, width: int, kernel: int, stride: int, pad: int, dilation: int, format: str
) -> None:
    x, weight = torch.rand(2, 8, height, width) * 2 - 1, torch.rand(16, 8, kernel, kernel) * 2 - 1
    weight = nm_masked(weight, 2, 4, 16)
    if min(height, width) + 2 * pad <= dilation * (kernel - 1):
        return
    want = F.conv2d(x, weight, None, stride, pad, dilation)
    pairs = ((k, k) for k in (stride, pad, dilation))
    window: Any = ((height, width), tuple(want.shape[2:]), (kernel, kernel), *pairs)
    prepack = prepack_linear if reads_own(window) else prepack_conv
    stored = prepack(weight, format=format)
    got = products.whole_conv(x, stored, None, window, format=format)
    torch.testing.assert_close(got, want, **within(8 * kernel * kernel))


class Masked(nn.Module):
    def __init__(self, n: int, m: int, v: int) -> None:
        super().__init__()
        self.n, self.m, self.v = n, m, v

    def forward(self, weight: Tensor) -> Tensor:
        return nm_masked(weight, self.n, self.m, self.v)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 3, 3, padding=1)
        self.first, self.one = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 32, 1)
        self.down, self.low = nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 32, 3, padding=1)
        self.up = nn.ConvTranspose2d(32, 32, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.first(self.enter(x)))
        return self.leave(F.silu(y + self.up(self.low(F.silu(self.down(self.one(y)))))))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(3, 32, 2, 2), nn.ConvTranspose2d(32, 3, 2, 2)
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.wide, self.narrow = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (image := self.enter(x)).flatten(2).transpose(1, 2)
        heads = self.qkv(tokens).unflatten(2, (3, 2, 16)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        tokens = tokens + self.out(attended)
        tokens = tokens + self.narrow(F.gelu(self.wide(tokens)))
        return self.leave(tokens.transpose(1, 2).unflatten(2, image.shape[2:]))


SPARSE: dict[Callable[[], nn.Module], tuple[str, ...]] = {
    Convolutions: ("first", "one", "down", "low", "up"),
    Transformer: ("qkv", "out", "wide", "narrow"),
}
CHOSEN = {Convolutions: 4, Transformer: 4}
"""Layers in the format; ``up`` is transposed, so that no 16 outputs share their inputs."""
# Values stay below 5. Nine layers, each a sum of at most 9 * 64 products: sqrt(576) = 24 units.
CLOSE = {"rtol": 0.0, "atol": 9 * 24 * 5 * EPS}


SMALL = Costs(
    few_channels=0,
    few_macs=0,
    few_linear_macs=0,
    few_fine_inputs=0,
    few_fine_channels=0,
    few_sites_channels=0,
    most_sites=0.0,
)
"""With lists for small layers too, and outputs along the lanes whatever the CPU."""


def masked(kind: Callable[[], nn.Module], n: int = 2, m: int = 4, v: int = 16) -> nn.Module:
    torch.manual_seed(0)
    model = kind().eval()
    for name in SPARSE[kind]:
        parametrize.register_parametrization(getattr(model, name), "weight", Masked(n, m, v))
    return model


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    x, mask = torch.randn(1, 3, 16, 16), torch.zeros(16, 16, dtype=torch.bool)
    mask[3:7, 4:9] = True
    return x, torch.where(mask, x + 1, x), mask


def wrapped(model: nn.Module, **options: Any) -> SparseModule:
    own: dict[str, Any] = {
        "backend": "eager",
        "policy": "exact",
        "dense_share": 0.0,
        "dense_above": 1.0,
    }
    own["costs"] = SMALL
    return sparsify.sparsify(model, **{**own, **options})


def formats(sparse: SparseModule, name: str) -> Iterator[str]:
    """Of the products in a graph."""
    for node in sparse.graphs(inputs()[0])[name].graph.nodes:
        if "format" in node.kwargs:
            yield node.kwargs["format"]


def check_graphs(sparse: SparseModule, model: nn.Module) -> None:
    """A record, an update, a commit and an update of that one are the model's."""
    x, edited, mask = inputs()
    want, again = model(edited), model(x)
    out, baseline = sparse.record(x)
    torch.testing.assert_close(out, again, **CLOSE)
    torch.testing.assert_close(sparse.update(baseline, edited, mask=mask), want, **CLOSE)
    got, committed = sparse.update(baseline, edited, mask=mask, commit=True)
    torch.testing.assert_close(got, want, **CLOSE)
    torch.testing.assert_close(sparse.update(committed, x, mask=mask), again, **CLOSE)


@pytest.mark.parametrize(
    ("format", "backend"),
    [
        ("16:2:4", "eager"),
        ("16:2:4", "inductor"),
        ("sites 16:2:4", "eager"),
        ("1:2:4", "eager"),
    ],
)
@pytest.mark.parametrize("kind", SPARSE)
@torch.no_grad()
def test_all_graphs_run_sparse(kind: Callable[[], nn.Module], backend: str, format: str) -> None:
    v = 1 if format == "1:2:4" else 16
    costs = replace(SMALL, most_sites=0.5 if format.startswith("sites") else 0.0)
    model, (x, edited, mask) = masked(kind, v=v), inputs()
    sparse = wrapped(model, backend=backend, costs=costs)
    for name in ("dense", "record", "update", "commit"):
        found = list(formats(sparse, name))
        assert found.count(format) == CHOSEN[kind], (name, found)
    check_graphs(sparse, model)
    whole = wrapped(
        model, backend=backend, costs=costs, dense_above=0.0
    )  # every update is the dense graph
    got = whole.update(whole.record(x)[1], edited, mask=mask)
    torch.testing.assert_close(got, model(edited), **CLOSE)


@pytest.mark.parametrize("kind", SPARSE)
@torch.no_grad()
def test_coarse_grids_that_updates_compute_whole(kind: Callable[[], nn.Module]) -> None:
    model, (x, edited, mask) = masked(kind), inputs()
    sparse = wrapped(model, dense_share=0.99)
    assert "16:2:4" in list(formats(sparse, "update"))
    got = sparse.update(sparse.record(x)[1], edited, mask=mask)
    torch.testing.assert_close(got, model(edited), **CLOSE)


@torch.no_grad()
def test_other_weights_have_other_masks() -> None:
    """The lists are made again, for the record and for updates."""
    model, (x, edited, mask) = masked(Convolutions), inputs()
    sparse = wrapped(model)
    sparse.record(x)
    for parameter in model.parameters():
        parameter.copy_(torch.randn_like(parameter) / 9)
    out, baseline = sparse.record(x)
    torch.testing.assert_close(out, model(x), **CLOSE)
    torch.testing.assert_close(sparse.update(baseline, edited, mask=mask), model(edited), **CLOSE)


@pytest.mark.parametrize(
    ("share", "costs", "chosen"),
    [
        ((2, 4, 16), SMALL, "16:2:4"),
        ((2, 4, 64), SMALL, "16:2:4"),
        ((3, 4, 16), SMALL, "16:3:4"),
        ((2, 4, 1), SMALL, "1:2:4"),
        ((2, 4, 8), SMALL, "1:2:4"),
        ((2, 4, 16), replace(SMALL, formats=(FINE, "panels")), "1:2:4"),
        ((2, 4, 16), replace(SMALL, most_kept=0.4), "1:2:4"),
        ((2, 4, 1), replace(SMALL, most_fine=0.4), None),
        ((2, 4, 16), replace(SMALL, most_sites=0.5), "sites 16:2:4"),
        ((2, 4, 64), replace(SMALL, most_sites=0.5), "sites 16:2:4"),
        ((3, 4, 16), replace(SMALL, most_sites=0.5), "16:3:4"),
        ((2, 4, 8), replace(SMALL, most_sites=0.5), "1:2:4"),
        ((2, 4, 1), replace(SMALL, few_fine_inputs=10**4), None),
        ((3, 4, 1), SMALL, None),
        ((4, 4, 16), SMALL, None),
        ((3, 5, 16), SMALL, None),  # which does not divide the inputs
        ((2, 4, 16), replace(SMALL, formats=("panels",)), None),
    ],
)
@torch.no_grad()
def test_costs_choose(share: tuple[int, int, int], costs: Costs, chosen: str | None) -> None:
    model, (x, edited, mask) = masked(Convolutions, *share), inputs()
    sparse = wrapped(model, costs=costs)
    for name in ("dense", "update"):
        found = {format for format in formats(sparse, name) if ":" in format}
        assert found == ({chosen} if chosen else set())
    got = sparse.update(sparse.record(x)[1], edited, mask=mask)
    torch.testing.assert_close(got, model(edited), **CLOSE)


def test_float64_is_the_library_s() -> None:
    sparse = wrapped(masked(Convolutions).double())
    graphs = sparse.graphs(inputs()[0].double())
    found = {node.kwargs.get("format") for node in graphs["update"].graph.nodes}
    assert found == {None, "plain"}


@torch.no_grad()
def test_the_report_counts_what_is_kept() -> None:
    x, _, mask = inputs()
    dense, sparse = wrapped(Convolutions().eval()), wrapped(masked(Convolutions))
    for one in (dense, sparse):
        one.record(x)
        one.plan(mask)
    full = {node.name: node for node in dense.report()}
    kept = {node.name: node for node in sparse.report() if node.macs}
    assert len(kept) == 7
    assert all(full[name].macs == node.macs for name, node in kept.items())
    halves = [name for name, node in kept.items() if full[name].macs_now == 2 * node.macs_now]
    assert halves == [name for name, node in kept.items() if node.weights == 0.5]
    assert len(halves) == 5
    operators = {node.operator for node in kept.values()}
    assert operators == {"aten.conv2d", "aten.conv_transpose2d"}


@pytest.mark.parametrize("v", [16, 1])
def test_small_convolutions_of_whole_maps_are_the_library_s(v: int) -> None:
    model, name = masked(Convolutions, v=v), "few_channels" if v == 16 else "few_fine_channels"
    for changed in ({name: 65}, {"few_macs": 1 << 30}):
        costs = replace(SMALL, **changed)
        assert list(formats(wrapped(model, costs=costs), "dense")) == []
        assert list(formats(wrapped(model, costs=costs), "update")).count(f"{v}:2:4") == 4
    limit = 16 * 16 * 32 * 32 * 9  # of the first one
    for few, count in ((limit, 1), (limit + 1, 0)):
        sparse = wrapped(model, costs=replace(SMALL, few_macs=few))
        assert len(list(formats(sparse, "dense"))) == count


@pytest.mark.parametrize("name", ["dense", "update"])
def test_small_linear_layers_are_computed_whole(name: str) -> None:
    model = masked(Transformer)
    assert list(formats(wrapped(model), name)).count("16:2:4") == CHOSEN[Transformer]
    costs = replace(SMALL, few_linear_macs=1 << 30)
    assert "16:2:4" not in set(formats(wrapped(model, costs=costs), name))


@pytest.mark.parametrize(("v", "name"), [(16, "weights.json"), (1, "weights_v1.json")])
def test_benchmark(v: int, name: str, tmp_path: Path) -> None:
    weights.main(["--quick", "--rounds", "1", "--v", str(v), "--out", str(tmp_path)])
    name = "weights_sites.json" if v == 16 and loads_bound() else name
    result = json.loads((tmp_path / name).read_text())
    assert result["format"].split()[-1] == f"{v}:2:4"
    assert {"cpu", "torch", "commit"} <= result["environment"].keys()
    assert {product["kind"] for product in result["products"]} == set(weights.KINDS)


@torch.no_grad()
def test_the_same_after_an_export(tmp_path: Path) -> None:
    """Which is plain."""
    model, (x, edited, mask) = masked(Convolutions), inputs()
    sparse = wrapped(model)
    sparse.export(tmp_path / "net", x, format="pt2")
    loaded = sparsify.load(tmp_path / "net")
    got = loaded.update(loaded.record(x)[1], edited, mask=mask)
    torch.testing.assert_close(got, model(edited), **CLOSE)
