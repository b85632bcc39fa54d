"""Gather-conv: the kernels against float64, under the interpreter and the assembler."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen import tables
from sparsify.codegen.gather_conv import gather_conv, on_cuda
from sparsify.codegen.gather_conv.reference import ACTIVATIONS, activated, reference
from sparsify.codegen.gather_matmul import tiles
from sparsify.codegen.geometry import Geometry, TransposedWindow, Window
from sparsify.codegen.nm import nm_masked
from sparsify.codegen.nm.pattern import DENSE, NM
from sparsify.codegen.prepack import prepack_conv
from torch import Tensor
from torch._subclasses import FakeTensorMode

triton = pytest.importorskip("triton")

from sparsify.codegen.gather_conv import triton as kernels  # noqa: E402
from sparsify.codegen.operators.device import SHARED_BYTES  # noqa: E402

from tests.gpu_free.cubins import compile_cubin  # noqa: E402
from tests.gpu_free.interpreted import (  # noqa: E402
    compiled,
    guarded_accesses,
    interpreted,
    run_interpreted,
)

ABSENT, PACKED, IN_PLACE = "all sites are active", "packed halo", "halo in the baseline"


@dataclass(frozen=True)
class Case:
    """One convolution of [batch, groups * channels, *grid] and what follows it."""

    batch: int = 2
    groups: int = 1
    channels: int = 5
    width: int = 7
    grid: tuple[int, int] = (5, 6)
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    transposed: bool = False
    share: float = 0.3
    padded: bool = False
    halo: str = IN_PLACE
    bias: bool = True
    shift: bool = True
    residual: bool = True
    activation: str = "silu"
    scale: float = 0.7
    dtype: torch.dtype = torch.float32
    kept: NM = DENSE
    seed: int = 0

    @property
    def format(self) -> str:
        """Of the weight, if the kernel is to read what it keeps alone."""
        return "plain" if self.kept == DENSE else str(tiles.name(self.kept, self.channels))

    @property
    def geometry(self) -> Geometry:
        high, wide = self.grid
        step, padding = (self.stride, self.stride), (self.kernel[0] // 2, self.kernel[1] // 2)
        if self.transposed:
            out = (high * self.stride, wide * self.stride)
            return TransposedWindow(self.grid, out, self.kernel, step, padding, (1, 1))
        out = tuple(
            (n + 2 * p - k) // self.stride + 1
            for n, p, k in zip(self.grid, padding, self.kernel, strict=True)
        )
        return Window(self.grid, out, self.kernel, step, padding)


def arguments(case: Case, format: str | None = None) -> tuple[Any, ...]:
    """Of :func:`reference`; baseline rows that no kernel map reads are not numbers. ``format`` is
    the case's own unless it is given."""
    format = format or case.format
    random = torch.Generator().manual_seed(case.seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(case.dtype)

    geometry, dense = case.geometry, case.halo == ABSENT
    (high, wide), inner = case.grid, case.groups * case.channels
    out_mask = torch.rand(geometry.out_grid, generator=random) < case.share
    in_sites = tables.active_sites(torch.rand(high, wide, generator=random) < case.share, True)
    in_sites = in_sites if case.padded else in_sites.unique()
    sites = tables.active_sites(out_mask, case.padded)
    kernel_map, halo_sites = tables.kernel_map(
        geometry, None if dense else in_sites, sites, case.padded
    )
    full = drawn(case.batch, high * wide, inner)
    recorded = torch.full_like(full, torch.nan)
    recorded[:, halo_sites] = full[:, halo_sites]
    x = full if dense else full[:, in_sites]
    halo = recorded if case.halo == IN_PLACE else recorded[:, halo_sites]
    outer = case.groups * case.width
    shape = (inner, case.width) if case.transposed else (outer, case.channels)
    weight = nm_masked(drawn(*shape, *case.kernel), *case.kept)
    weight = prepack_conv(weight, case.groups, case.transposed, format=format)
    return (
        x,
        None if dense else halo,
        halo_sites if case.halo == IN_PLACE else None,
        kernel_map,
        weight,
        drawn(outer) if case.bias else None,
        drawn(case.batch, outer) if case.shift else None,
        case.activation,
        0.2,
        case.scale,
        drawn(case.batch, len(sites), outer) if case.residual else None,
        format,
    )


def check(case: Case, got: Tensor) -> None:
    """``got`` is the result in float64 to what rounding can do to it.

    The sum has ``taps * channels`` products and three terms more, in float32; the activations
    stretch its error by at most 1.1, and silu adds a few roundings of its own.
    """
    args = arguments(case, "plain")
    exact = [y.double() if isinstance(y, Tensor) and y.is_floating_point() else y for y in args]
    want = reference(*exact)
    sizes = [y.abs() if isinstance(y, Tensor) and y.is_floating_point() else y for y in exact]
    epilogue = ("none", 0.0, abs(case.scale), *sizes[-2:])
    largest = float(reference(*sizes[:7], *epilogue).max())
    single, own = torch.finfo(torch.float32).eps, torch.finfo(case.dtype).eps
    terms = args[4].shape[1] + 3
    bound = (1.1 * (terms + 5) * single + own) * largest
    assert got.shape == want.shape and got.dtype == case.dtype
    assert got.is_contiguous()
    assert float((got.double() - want).abs().max()) <= bound


@st.composite
def cases(draw: st.DrawFn) -> Case:
    transposed = draw(st.booleans())
    return Case(
        batch=draw(st.integers(1, 2)),
        groups=draw(st.sampled_from([1, 1, 3])),
        channels=draw(st.sampled_from([1, 5, 16, 20, 33])),
        width=draw(st.sampled_from([1, 3, 16, 31])),
        grid=(draw(st.integers(3, 7)), draw(st.integers(3, 7))),
        kernel=draw(st.sampled_from([(3, 3), (1, 1), (2, 3)])) if not transposed else (3, 3),
        stride=draw(st.integers(1, 2)),
        transposed=transposed,
        share=draw(st.sampled_from([0.0, 0.1, 0.5, 1.1])),
        padded=draw(st.booleans()),
        halo=draw(st.sampled_from([ABSENT, PACKED, IN_PLACE])),
        bias=draw(st.booleans()),
        shift=draw(st.booleans()),
        residual=draw(st.booleans()),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        scale=draw(st.sampled_from([1.0, 0.2, -2.0])),
        dtype=draw(st.sampled_from([torch.float32, torch.float16])),
        seed=draw(st.integers(0, 1000)),
    )


TILES = st.sampled_from([kernels.tile(16, 16, 16, 4, 2), kernels.tile(32, 16, 32, 4, 2)])


@interpreted
@settings(max_examples=40)
@given(cases(), st.sampled_from([None, 1, 2, 3, 8]), TILES)
def test_kernels(case: Case, splits: int | None, config: Any) -> None:
    args = arguments(case)
    with guarded_accesses():
        got = on_cuda(*args, splits=splits, config=config)
    check(case, got)


@interpreted
def test_depthwise() -> None:
    case = Case(groups=70, channels=1, width=1)
    args = arguments(case)
    with guarded_accesses():
        check(case, on_cuda(*args))


@interpreted
def test_columns_first() -> None:
    """Operands may be stored channel by channel."""
    case = Case()
    args = list(arguments(case))
    for i in (0, 1, -2):  # x, halo and residual
        args[i] = args[i].mT.contiguous().mT
    with guarded_accesses():
        got = on_cuda(*args, splits=2, config=kernels.tile(16, 16, 16, 4, 2))
    check(case, got)


@compiled
def test_interpreted() -> None:
    run_interpreted(__file__)


@given(cases())
def test_reference(case: Case) -> None:
    """The reference itself, against torch's convolution of the overlay."""
    case = replace(case, dtype=torch.float64, transposed=False)
    args = arguments(case)
    x, halo, halo_sites, kernel_map, weight, bias, shift, *how, residual, _ = args
    activation, slope, scale = how
    if halo is not None:
        x = torch.cat([x, halo if halo_sites is None else halo[:, halo_sites]], 1)
    columns = F.pad(x.mT, (0, 2))[:, :, kernel_map].unflatten(1, (case.groups, -1))
    product = torch.einsum("ngcst,gtco->nsgo", columns, weight.unflatten(1, (-1, case.channels)))
    want = product.flatten(2)
    want = want if bias is None else want + bias
    want = want if shift is None else want + shift[:, None]
    want = activated(want, activation, slope) * scale
    want = want if residual is None else want + residual
    torch.testing.assert_close(reference(*args), want)


@pytest.mark.parametrize("halo", [ABSENT, PACKED, IN_PLACE])
@pytest.mark.parametrize("kept", [DENSE, NM(1, 4, 16)])
def test_operator(halo: str, kept: NM) -> None:
    args = arguments(Case(halo=halo, kept=kept, channels=8, width=16))
    x, recorded, halo_sites, kernel_map, weight, bias, shift, *how, residual, format = args
    packed, halo_columns, last = (None if y is None else y.mT for y in (x, recorded, residual))
    operands = (packed, halo_columns, halo_sites, kernel_map, weight, bias)
    got = gather_conv(*operands, shift[:, :, None], *how, last, format=format)
    assert got.mT.equal(reference(*args))
    torch.library.opcheck(torch.ops.sparsify.gather_conv.default, args)


@compiled
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("kept", [DENSE, NM(1, 4, 16)])
def test_host_reads_no_table(splits: int, kept: NM) -> None:
    """Reading a value of a fake tensor raises."""
    args = arguments(Case(kept=kept, channels=8, width=16))
    with (
        FakeTensorMode() as mode,
        patch.object(kernels, "_tuned", MagicMock()) as kernel,
        patch.object(kernels, "reduce_kernel", MagicMock()) as reduce,
    ):
        fake = [mode.from_tensor(y) if isinstance(y, Tensor) else y for y in args]
        on_cuda(*fake, splits=splits)
    assert kernel.__getitem__.called
    assert reduce.__getitem__.called == (splits > 1)


def test_splits_fill_the_device() -> None:
    assert kernels._splits(rows=64, columns=1280, depth=11520, processors=132) == 16
    assert kernels._splits(rows=4096, columns=320, depth=2880, processors=132) == 2
    assert kernels._splits(rows=8192, columns=640, depth=2880, processors=132) == 1
    assert kernels._splits(rows=1, columns=3, depth=27, processors=132) == 1


DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
POINTERS = ("x", "halo", "weight", "bias", "shift", "residual", "out")
SIZES = ("rows", "s_out", "s_in", "s_halo", "x_item", "x_site", "halo_item", "halo_site")


def types(dtype: str, *, split: bool = False) -> dict[str, str]:
    kinds = {**dict.fromkeys(POINTERS, f"*{dtype}"), **dict.fromkeys(SIZES, "i32")}
    kinds |= {"halo_sites": "*i64", "kernel_map": "*i64", "slope": "fp32", "scale": "fp32"}
    return kinds | ({"out": "*fp32"} if split else {})


def assert_fits(cubin: Any) -> None:
    assert cubin.asm["cubin"]
    assert cubin.metadata.shared <= SHARED_BYTES


DENSE_WEIGHT = {"lists": None, "INPUTS": 0, "PER_LIST": 0}


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [4, 320])
def test_cubins(capability: int, dtype: str, channels: int) -> None:
    """Every tile for wide convolutions, and the smallest for the first of a network."""
    known = {"WIDTH": channels, "CHANNELS": channels, **DENSE_WEIGHT}
    arrays = {"x": torch.empty(0, dtype=DTYPES[dtype])}
    configs = [
        tile
        for rows in (16, 128, 512, 4096)
        for tile in kernels.suited(kernels.TILES, arrays, rows=rows, **known)
    ]
    for config in dict.fromkeys(configs) if dtype == "bf16" else configs[-1:]:
        constants = {**known, **config.kwargs, "GROUPS": 1, "TAPS": 9, "SPLITS": 1}
        constants |= {"ACTIVATION": "silu", "PRECISION": "tf32" if dtype == "fp32" else "ieee"}
        how = (capability, config.num_warps, config.num_stages)
        cubin = compile_cubin(kernels.matmul_kernel, types(dtype), constants, *how)
        assert_fits(cubin)
        assert ("mma" in cubin.asm["ptx"]) and "cp.async" in cubin.asm["ptx"]


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", DTYPES)
def test_other_cubins(capability: int, dtype: str) -> None:
    """Parts of a split product, their sum, and depthwise convolutions."""
    config = kernels.TILES[0]
    shape = {"WIDTH": 1280, "CHANNELS": 1280, "GROUPS": 1, "TAPS": 9, "SPLITS": 16}
    shape |= DENSE_WEIGHT
    how = {"ACTIVATION": "none", "PRECISION": "ieee"}
    parts = types(dtype, split=True)
    for absent in ("halo_sites", "shift"):
        del parts[absent]
    constants = {**shape, **how, **config.kwargs, "halo_sites": None, "shift": None}
    options = (capability, config.num_warps, config.num_stages)
    assert_fits(compile_cubin(kernels.matmul_kernel, parts, constants, *options))

    names = ("bias", "shift", "residual", "out", "rows", "s_out", "slope", "scale")
    summed = {"parts": "*fp32", **{name: types(dtype)[name] for name in names}}
    constants = {"WIDTH": 1280, "SPLITS": 16, "ACTIVATION": "silu", **kernels._REDUCE}
    assert_fits(compile_cubin(kernels.reduce_kernel, summed, constants, capability, 4, 3))

    constants = {"WIDTH": 320, "TAPS": 9, "ACTIVATION": "relu", **kernels._DEPTHWISE}
    assert_fits(compile_cubin(kernels.depthwise_kernel, types(dtype), constants, capability, 4, 3))
