"""Overlay attention: the kernels against float64, under the interpreter and the assembler."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sparsify.codegen.overlay_attention import key_bias, overlay_attention
from sparsify.codegen.overlay_attention.reference import reference
from torch import Tensor
from torch._subclasses import FakeTensorMode

triton = pytest.importorskip("triton")

from sparsify.codegen.operators.device import SHARED_BYTES  # noqa: E402
from sparsify.codegen.overlay_attention import triton as kernels  # noqa: E402

from tests.gpu_free.cubins import compile_cubin  # noqa: E402
from tests.gpu_free.interpreted import (  # noqa: E402
    compiled,
    guarded_accesses,
    interpreted,
    run_interpreted,
)

tl = triton.language

HEADS_FIRST, HEADS_LAST, FUSED, SPREAD = "heads first", "heads last", "fused", "spread"


@dataclass(frozen=True)
class Case:
    """Sizes of one call; ``count`` of the ``sites`` are different, None: all."""

    batch: int = 2
    heads: int = 2
    queries: int = 5
    positions: int = 40
    sites: int = 7
    count: int | None = 5
    depth: int = 32
    width: int = 32
    scale: float = 0.2
    dtype: torch.dtype = torch.float32
    form: str = HEADS_LAST
    seed: int = 0

    @property
    def active(self) -> int:
        return self.sites if self.count is None else max(1, self.count)


def tensor(case: Case, random: torch.Generator, width: int, rows: int, garbage: Tensor) -> Tensor:
    """Random [N, h, rows, width] in the form of the case, but at the rows ``garbage``."""
    batch, heads, form = case.batch, case.heads, case.form
    shape = {
        HEADS_FIRST: (batch, heads, rows, width),
        HEADS_LAST: (batch, rows, heads, width),
        FUSED: (batch, rows, 3, heads, width),  # queries, keys and values side by side
        SPREAD: (batch, 1, width, rows),  # rows are not in one piece, and all heads are one
    }[form]
    x = torch.randn(shape, generator=random).to(case.dtype)
    if form == FUSED:
        x = x[:, :, 1]
    x = x.mT if form == SPREAD else x if form == HEADS_FIRST else x.transpose(1, 2)
    x[:, :, garbage] = 1e4
    return x.expand(-1, heads, -1, -1)


def arguments(case: Case) -> tuple[Any, ...]:
    """Of :func:`overlay_attention`, with garbage in stale rows and behind the active ones."""
    random = torch.Generator().manual_seed(case.seed)
    active = torch.randperm(case.positions, generator=random)[: case.active].sort().values
    sites = torch.cat([active, active[-1:].expand(case.sites - case.active)])
    padding = torch.arange(case.active, case.sites)
    query = tensor(case, random, case.depth, case.queries, padding[:0])
    rest = [
        tensor(case, random, width, rows, garbage)
        for rows, garbage in ((case.positions, active), (case.sites, padding))
        for width in (case.depth, case.width)
    ]
    return query, *rest, key_bias(sites, case.positions), case.scale


def check(case: Case, got: Tensor, args: tuple[Any, ...]) -> None:
    """``got`` is the attention in float64 to what rounding can do to it.

    A score, a sum of ``depth`` products, is rounded four times more on the way to its weight. The
    weight is rounded to the dtype for the second product, in float16 perhaps to a subnormal
    number; each key adds a rounding to the two sums, and at most one to their scale.
    """
    query, base_key, base_value, key, value, bias, scale = args
    counted = bias == 0
    keys = torch.cat([base_key, key], 2)[:, :, counted].double()
    values = torch.cat([base_value, value], 2)[:, :, counted].double()
    weights = (query.double() @ keys.mT * scale).softmax(3)
    largest = float((query.double().abs() @ keys.abs().mT).max()) * abs(scale)
    single, own = torch.finfo(torch.float32).eps / 2, torch.finfo(case.dtype)
    score = (case.depth + 4) * single * largest
    sums = case.positions * (4 * single + own.smallest_normal * own.eps)
    bound = (2 * score + sums + 2 * own.eps) * float(values.abs().max())
    assert got.shape == (case.batch, case.heads, case.queries, case.width)
    assert got.dtype == case.dtype
    assert float((got.double() - weights @ values).abs().max()) <= bound


@st.composite
def cases(draw: st.DrawFn) -> Case:
    positions = draw(st.integers(1, 60))
    sites = draw(st.sampled_from([1, positions, None])) or draw(st.integers(1, positions))
    return Case(
        batch=draw(st.integers(1, 2)),
        heads=draw(st.integers(1, 2)),
        queries=draw(st.integers(1, 40)),
        positions=positions,
        sites=sites,
        count=draw(st.none() | st.integers(0, sites)),
        depth=draw(st.sampled_from([1, 32, 40, 64, 80, 160, 256])),
        width=draw(st.sampled_from([1, 32, 40, 72, 128, 256])),
        scale=draw(st.sampled_from([0.0, 0.05, 0.2, 1.0, -0.3])),
        dtype=draw(st.sampled_from([torch.float32, torch.float16])),
        form=draw(st.sampled_from([HEADS_FIRST, HEADS_LAST, FUSED, SPREAD])),
        seed=draw(st.integers(0, 1000)),
    )


@interpreted
@settings(max_examples=40)
@given(cases(), st.sampled_from([1, 2, 5]), st.sampled_from([16, 32]))
@example(Case(depth=1, positions=24), 1, 16)  # which allows little rounding
def test_kernels(case: Case, splits: int, block: int) -> None:
    args = arguments(case)
    config = kernels.tile(block, block, 4, 2)
    with guarded_accesses():
        got = kernels.launch(*args, splits=splits, config=config)
    check(case, got, args)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("queries", [3, 65])
@pytest.mark.parametrize("width", [40, 160])
def test_chosen_tiles(dtype: torch.dtype, queries: int, width: int) -> None:
    """Whole launches, with the tile and the splits that the sizes call for."""
    sizes = {"batch": 1, "heads": 2, "positions": 300, "sites": 70, "count": 33}
    case = Case(queries=queries, depth=width, width=width, dtype=dtype, **sizes)
    args = arguments(case)
    with guarded_accesses():
        check(case, kernels.launch(*args), args)


@interpreted
@pytest.mark.parametrize("splits", [1, 3])
def test_stale_rows_alone(splits: int) -> None:
    """Every baseline row is stale, so that whole blocks and whole splits have no weight."""
    case = Case(positions=70, sites=70, count=70)
    args = arguments(case)
    with guarded_accesses():
        check(case, kernels.launch(*args, splits=splits, config=kernels.tile(16, 16, 4, 2)), args)


@triton.jit
def _shifted_copy(source, target, size, shift, block: tl.constexpr):  # type: ignore[no-untyped-def]
    lane = tl.arange(0, block)
    inside = lane < size
    tl.store(target + lane, tl.load(source + lane + shift, mask=inside), mask=inside)


@interpreted
@pytest.mark.parametrize("shift", [-1, 1, 1 << 40])
def test_guard(shift: int) -> None:
    """The guard lets masked elements pass, and no access outside of the arguments."""
    source, target = torch.arange(100.0)[20:33], torch.empty(13)
    with guarded_accesses():
        _shifted_copy[(1,)](source, target, 13, 0, block=16)
        assert target.equal(source)
        with pytest.raises(triton.runtime.errors.InterpreterError, match="OutOfRange"):
            _shifted_copy[(1,)](source, target, 13, shift, block=16)
        with pytest.raises(triton.runtime.errors.InterpreterError, match="OutOfRange"):
            _shifted_copy[(1,)](source, target[:12], 13, 0, block=16)


@compiled
def test_interpreted() -> None:
    run_interpreted(__file__)


@compiled
@given(cases())
def test_reference(case: Case) -> None:
    args = arguments(case)
    got = reference(*args)
    check(case, got, args)
    assert got.transpose(1, 2).is_contiguous()


@compiled
def test_key_bias() -> None:
    """Attention over a padded table is that over the keys that it replaces."""
    sites, scale = torch.tensor([0, 3, 4, 4, 4]), 0.3
    base_key, base_value = torch.randn(2, 1, 2, 6, 8).double()
    query, key, value = torch.randn(3, 1, 2, 5, 8).double()
    key[:, :, 3:], value[:, :, 3:] = key[:, :, 2:3], value[:, :, 2:3]
    wanted = F.scaled_dot_product_attention(
        query,
        base_key.index_copy(2, sites, key),
        base_value.index_copy(2, sites, value),
        scale=scale,
    )
    got = overlay_attention(query, base_key, base_value, key, value, key_bias(sites, 6), scale)
    torch.testing.assert_close(got, wanted)


@compiled
def test_operator() -> None:
    args = arguments(Case(count=7, form=FUSED))
    assert overlay_attention(*args).equal(reference(*args))
    torch.library.opcheck(torch.ops.sparsify.overlay_attention.default, args)


@compiled
@pytest.mark.parametrize("splits", [1, 4])
def test_host_reads_no_table(splits: int) -> None:
    """Reading a value of a fake tensor raises."""
    with (
        FakeTensorMode(allow_non_fake_inputs=True),
        patch.object(kernels, "attention_kernel", MagicMock()) as kernel,
        patch.object(kernels, "combine_kernel", MagicMock()) as combine,
    ):
        args = [torch.empty_like(x) if isinstance(x, Tensor) else x for x in arguments(Case())]
        kernels.launch(*args, splits=splits)
    kernel.__getitem__.assert_called_once_with((4 * splits,))
    assert combine.__getitem__.called == (splits > 1)


@compiled
def test_split_count() -> None:
    assert kernels.split_count(programs=132, key_blocks=64, processors=132) == 1
    assert kernels.split_count(programs=8, key_blocks=64, processors=132) == 16
    assert kernels.split_count(programs=100, key_blocks=64, processors=132) == 2
    assert kernels.split_count(programs=1, key_blocks=4096, processors=132) == 64
    assert kernels.split_count(programs=1, key_blocks=3, processors=132) == 1


def signature(dtype: str, split: bool) -> dict[str, str]:
    names = ("query", "base_key", "base_value", "key", "value")
    pointers = {**dict.fromkeys(names, dtype), "bias": "fp32", "out": dtype}
    if split:
        pointers |= dict.fromkeys(("out", "bests", "totals"), "fp32")
    sizes = dict.fromkeys([*kernels._SIZES, *kernels._STEPS], "i32")
    return {"scale": "fp32", **{name: f"*{x}" for name, x in pointers.items()}, **sizes}


DTYPES = {
    "fp16": (torch.float16, "ieee"),
    "bf16": (torch.bfloat16, "ieee"),
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
}


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("kind", "width", "queries"),
    [*product(DTYPES, (64, 256), (4096,)), ("fp16", 64, 1), ("fp32", 256, 1)],
)
def test_cubins(capability: int, kind: str, width: int, queries: int) -> None:
    """Compiles for real devices, fits their shared memory, and reads keys 16 bytes at a time."""
    (dtype, precision), split = DTYPES[kind], queries == 1
    config = kernels.suited(queries, width, dtype, precision)
    constants = {"KEY_DIM": width, "VALUE_DIM": width, "BLOCK_D": width, "BLOCK_V": width}
    constants |= {"UNIT": 16 // dtype.itemsize, "PRECISION": precision, **config.kwargs}
    if not split:
        constants |= {"bests": None, "totals": None}
    types = signature("fp32" if kind == "tf32" else kind, split)
    how = (capability, config.num_warps, config.num_stages)
    cubin = compile_cubin(kernels.attention_kernel, types, constants, *how)
    assert cubin.asm["cubin"]
    assert cubin.metadata.shared <= SHARED_BYTES
    assert "cp.async.cg" in cubin.asm["ptx"]  # of 16 bytes; narrower copies are cp.async.ca


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("width", [64, 256])
def test_combine_cubins(capability: int, dtype: str, width: int) -> None:
    types = {**dict.fromkeys(("parts", "bests", "totals"), "*fp32"), "out": f"*{dtype}"}
    types |= {"rows": "i32", "splits": "i32"}
    constants = {"VALUE_DIM": width, "BLOCK_V": width, "BLOCK_R": kernels._COMBINED_ROWS}
    cubin = compile_cubin(kernels.combine_kernel, types, constants, capability, 4, 3)
    assert cubin.asm["cubin"]
    assert cubin.metadata.shared <= SHARED_BYTES
