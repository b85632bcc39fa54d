"""Kernels and whole models on a GPU, against the CPU."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify.codegen import gather_conv, overlay_attention, products
from sparsify.codegen.gather_matmul import semi_structured
from sparsify.codegen.gather_matmul.reference import reference
from sparsify.codegen.nm import nm_masked
from sparsify.codegen.nm.pattern import NM
from sparsify.codegen.prepack import prepack_conv, prepack_linear
from sparsify.passes.costs import Costs
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from benchmarks.networks import small
from sparsify import BaselineStore, sparsify
from tests import test_gather_conv as conv
from tests import test_overlay_attention as attention
from tests import test_sparse_products as sparse_products
from tests.small import small_inputs, small_unet

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
CONVS = [
    conv.Case(channels=64, width=96, grid=(17, 19)),
    conv.Case(channels=33, width=3, grid=(9, 9), halo=conv.PACKED, activation="relu", share=0.0),
    conv.Case(channels=320, width=320, grid=(8, 8), halo=conv.ABSENT, padded=True),
    conv.Case(channels=16, width=16, groups=4, stride=2, activation="leaky_relu"),
    conv.Case(channels=1, width=1, groups=96, residual=False),
    conv.Case(channels=24, width=40, transposed=True, stride=2, bias=False, shift=False),
    conv.Case(channels=64, width=96, grid=(17, 19), kept=NM(2, 4, 16)),
    conv.Case(channels=320, width=320, grid=(8, 8), halo=conv.ABSENT, kept=NM(2, 4, 64)),
    conv.Case(channels=48, width=256, grid=(9, 9), halo=conv.PACKED, kept=NM(1, 8, 128)),
]
ATTENTIONS = [
    attention.Case(depth=depth, width=depth, queries=queries, positions=300, sites=70, count=count)
    for depth in (40, 64, 160)
    for queries in (1, 65)
    for count in (None, 33)
]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 stays float32; tf32 is the user's choice."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def on_cuda(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.cuda(), tree)


def on_cpu(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda x: x.cpu(), tree)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("splits", [None, 1, 4])
def test_small_gather_conv(case: conv.Case, dtype: torch.dtype, splits: int | None) -> None:
    case = replace(case, dtype=dtype)
    args = conv.arguments(case)
    got = on_cpu(gather_conv.on_cuda(*on_cuda(args), splits=splits))
    conv.check(case, got)
    if splits is None:
        assert torch.equal(got, on_cpu(torch.ops.sparsify.gather_conv(*on_cuda(args))))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", ATTENTIONS)
def test_small_overlay_attention(case: attention.Case, dtype: torch.dtype) -> None:
    case = replace(case, dtype=dtype)
    args = attention.arguments(case)
    got = overlay_attention.overlay_attention(*on_cuda(args))
    attention.check(case, on_cpu(got), args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("format", "v"), [("2:4", 1), ("tiles 64:2:4", 64)])
def test_small_sparse_products(dtype: torch.dtype, format: str, v: int) -> None:
    """Gathered, and linear, for numbers of rows that 8 divides and others."""
    cuda = torch.device("cuda")
    if format == "2:4" and not semi_structured.runs(cuda, dtype):
        pytest.skip("there are no sparse tensor cores for it")
    torch.manual_seed(0)
    for sites, batch, taps, has_bias in product((1, 8, 77), (1, 2), (1, 9), (False, True)):
        weight = nm_masked(torch.randn(192, 64, taps, 1, device=cuda), 2, 4, v).to(dtype)
        rows = torch.randn(batch, 99, 64, device=cuda).to(dtype)
        bias = torch.randn(192, device=cuda).to(dtype) if has_bias else None
        kernel_map = torch.randint(99, (sites, taps), device=cuda)
        matrix = prepack_conv(weight, format="plain")
        exact_bias = None if bias is None else bias.double()
        want = reference(rows.double(), kernel_map, matrix.double(), exact_bias)
        sizes = reference(rows.double().abs(), kernel_map, matrix.double().abs(), None)
        depth, single = taps * 64, torch.finfo(torch.float32).eps
        # A sum in float32 of ``depth`` products and a bias, then rounded.
        bound = float(sizes.max() + 5) * ((depth + 1) * single + torch.finfo(dtype).eps)
        stored = prepack_conv(weight, format=format)
        got = torch.ops.sparsify.gather_matmul(rows, kernel_map, stored, bias, format)
        torch.testing.assert_close(got.double(), want, rtol=0.0, atol=bound)
        one = weight[:, :, 0, 0]
        want = torch.nn.functional.linear(rows.double(), one.double(), exact_bias)
        stored = prepack_linear(one, format=format)
        got = products.linear(rows, stored, bias, format=format)
        torch.testing.assert_close(got.double(), want, rtol=0.0, atol=bound)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kept", [NM(2, 4), NM(1, 8, 32)])
def test_sparse_weights(kept: NM, dtype: torch.dtype) -> None:
    """An update of a model that has them is that of its masked weights, dense."""
    model = sparse_products.masked(sparse_products.Convolutions, *kept).to("cuda", dtype)
    x, edit, mask = sparse_products.inputs()
    x, edit = x.to("cuda", dtype), edit.to("cuda", dtype)
    costs = Costs(tile_columns=32, few_linear_macs=0)
    ours = sparsify(model, policy="exact", dense_share=0.0, dense_above=1.0, costs=costs)
    baseline = ours.record(x)[1]
    for _ in range(2):  # compiled and recorded, then replayed
        got = ours.update(baseline, edit, mask=mask)
    exact = model.double()(edit.double())
    # Nine layers, each rounded to the dtype, of values below 5; as on the CPU for its sums.
    within = 9 * 24 * 5 * torch.finfo(torch.float32).eps + 9 * 5 * torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), exact, rtol=0.0, atol=within)


def edited(inputs: tuple[Any, ...], mask: Tensor) -> tuple[Any, ...]:
    image = inputs[0]
    return (torch.where(mask, torch.randn_like(image), image), *inputs[1:])


def masks(grid: tuple[int, int]) -> list[Tensor]:
    corner = torch.zeros(grid, dtype=torch.bool)
    corner[: grid[0] // 4, : grid[1] // 3] = True
    moved = corner.roll((grid[0] // 2, grid[1] // 2), (0, 1))
    return [corner, moved, torch.ones_like(corner)]


@torch.no_grad()
@pytest.mark.parametrize("name", small())
def test_networks(name: str) -> None:
    """The compiled update on the GPU is the eager one on the CPU; it never waits for the GPU."""
    torch.manual_seed(0)
    network = small()[name]
    model, (inputs, options) = network.build().eval(), network.inputs()
    how = {"dilate": 1, "dense_share": 0.0, "dense_above": 1.0}
    reference = sparsify(model, backend="eager", **how)
    _, recorded = reference.record(*inputs, **options)
    calls, sizes = [], set()
    for mask in masks(recorded.grid):
        call = edited(inputs, mask)
        calls.append((mask, call, reference.update(recorded, *call, mask=mask, **options)))
    model.cuda()
    sparse, options = sparsify(model, **how), on_cuda(options)
    inputs = on_cuda(inputs)
    _, baseline = sparse.record(*inputs, **options)
    for mask, (image, *_), wanted in calls:
        plan, call = sparse.plan(mask), (image.cuda(), *inputs[1:])
        sizes.add(
            tuple(
                table.shape
                for table in sparse._engine.program_of(baseline).plan(plan).tables.values()
            )
        )
        sparse.update(baseline, *call, mask=plan, **options)  # compiles, tunes and records
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = sparse.update(baseline, *call, mask=plan, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for ours, theirs in zip(tree_leaves(got), tree_leaves(wanted), strict=True):
            assert float((ours.cpu() - theirs).abs().max() / theirs.abs().max()) <= 1e-4
    assert len(sparse._engine.program_of(baseline)._emitted["update"]._replayed._recorded) == len(
        sizes
    )


@torch.no_grad()
def test_large_edits_replay_the_dense_model() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU()).eval().cuda()
    x, sparse = torch.randn(1, 3, 16, 16).cuda(), sparsify(model, policy="exact")
    _, baseline = sparse.record(x)
    mask = torch.ones(16, 16, dtype=torch.bool)
    mask[:2, :2] = False
    plan, new = sparse.plan(mask), edited((x,), mask.cuda())[0]
    sparse.update(baseline, new, mask=plan)
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = sparse.update(baseline, new, mask=plan)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(got, model(new), atol=1e-5, rtol=1e-5)
    assert sparse.report().is_dense


@torch.no_grad()
@pytest.mark.parametrize(
    "tiers", [{"device": None}, {"host": None}, {"disk": None}, "all"], ids=str
)
def test_a_store_gives_the_same_edit(tiers: Any, tmp_path: Path) -> None:
    """From each tier; no update waits for values that come from pinned memory."""
    model, (image, time, context) = small_unet().cuda(), on_cuda(small_inputs())
    sparse, mask = sparsify(model, dilate=1), masks((16, 16))[0]
    new = torch.where(mask.cuda(), image + 1, image)

    def run(start: Tensor) -> list[Tensor]:
        return [sparse(start, time - step, context) for step in range(6)]

    with sparse.recording() as session:
        run(image)
    with session.editing(mask):
        want = run(new)
    size = session.nbytes // 6
    budgets = {"device": 2 * size, "host": 5 * size, "disk": None} if tiers == "all" else tiers
    with BaselineStore(**budgets, folder=tmp_path) as store:
        with sparse.recording(store=store, calls=6) as stored:
            run(image)
        for _ in range(2):
            with stored.editing(mask):
                got = run(new)
            for ours, theirs in zip(got, want, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
        for one, other in zip(stored.calls, session.calls, strict=True):
            values = one.fetched()
            assert values.keys() == other.values.keys()
            assert all(torch.equal(values[name], own) for name, own in other.values.items())
        if tiers == {"host": None}:
            torch.cuda.set_sync_debug_mode("error")
            try:
                stored.calls[0].fetched()
            finally:
                torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def test_new_weights_are_seen() -> None:
    """Recordings hold the addresses of the weights that they were made with."""
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU()).eval().cuda()
    x, mask = torch.randn(1, 3, 16, 16).cuda(), masks((16, 16))[0]
    sparse = sparsify(model, policy="exact")
    for _ in range(2):
        _, baseline = sparse.record(x)
        new = edited((x,), mask.cuda())[0]
        got = sparse.update(baseline, new, mask=mask)
        torch.testing.assert_close(got, model(new), atol=1e-5, rtol=1e-5)
        model[0].weight.mul_(1.5)
