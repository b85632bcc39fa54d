"""Weights that keep N of M inputs, shared by the columns of a tile: how they are stored, and the
kernel of gather-conv that reads what is kept, under the interpreter and the assembler."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen import products
from sparsify.codegen.errors import OperandError
from sparsify.codegen.gather_conv import on_cuda
from sparsify.codegen.gather_matmul import tiles
from sparsify.codegen.gather_matmul.formats import named
from sparsify.codegen.nm import nm_masked
from sparsify.codegen.nm.pattern import DENSE, NM
from sparsify.codegen.prepack import prepack_conv, prepack_linear
from torch import Tensor

pytest.importorskip("triton")

from sparsify.codegen.gather_conv import triton as kernels

from tests.gpu_free.cubins import compile_cubin, stack_bytes
from tests.gpu_free.interpreted import (
    compiled,
    guarded_accesses,
    interpreted,
    run_interpreted,
)
from tests.test_gather_conv import (
    ABSENT,
    DTYPES,
    Case,
    arguments,
    assert_fits,
    cases,
    check,
    types,
)

SHARES = st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 4), (2, 8), (5, 16), (1, 1)])
V = st.sampled_from([16, 32, 48, 64, 256])
SEEDS = st.integers(0, 1000)


def of_dtype(weight: Tensor, depth: int, dtype: torch.dtype, kept: NM) -> tuple[Any, ...]:
    return weight, depth, dtype, tiles.tile_columns(kept.v), kept.n, kept.m


@given(SHARES, V, st.integers(1, 5), st.integers(1, 9), st.sampled_from([*DTYPES.values()]), SEEDS)
def test_what_is_stored(
    share: tuple[int, int], v: int, groups: int, taps: int, dtype: torch.dtype, seed: int
) -> None:
    """Is the weight to the bit, in no more numbers than it keeps, and lists of these."""
    torch.manual_seed(seed)
    kept = NM(*share, v)
    weight = nm_masked(torch.randn(v, groups * kept.m, taps, 1).to(dtype), *kept)
    format = str(tiles.name(kept, weight.shape[1]))
    stored, matrix = (prepack_conv(weight, format=own) for own in (format, "plain"))
    depth = taps * weight.shape[1]
    how = of_dtype(stored, depth, dtype, kept)
    assert torch.equal(tiles.unpacked(*how), matrix[0])
    values, lists = tiles.parts(*how)
    assert values.shape == (1, depth // kept.m * kept.n, v)
    assert lists.shape == (v // tiles.tile_columns(v), values.shape[1])
    assert lists.is_contiguous() and values.is_contiguous()
    assert values.data_ptr() % 16 == lists.data_ptr() % 16 == 0
    assert stored.nbytes == values.nbytes + lists.nbytes
    assert named(format).width(stored, depth) == v


@given(SHARES, V, st.integers(1, 5), st.integers(1, 20), st.booleans(), SEEDS)
def test_linear_of_the_reference(
    share: tuple[int, int], v: int, groups: int, rows: int, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    (n, m), depth = share, groups * share[1]
    x, shift = torch.rand(2, rows, depth) * 2 - 1, torch.rand(v) if bias else None
    weight = nm_masked(torch.rand(v, depth) * 2 - 1, n, m, v)
    format = str(tiles.name(NM(n, m, v), depth))
    got = products.linear(x, prepack_linear(weight, format=format), shift, format=format)
    # Two sums of ``depth`` products of values below 1.
    within = 2 * (depth + 1) * depth**0.5 * torch.finfo(torch.float32).eps
    torch.testing.assert_close(got, F.linear(x, weight, shift), rtol=0.0, atol=within)


def test_what_is_no_such_weight_is_refused() -> None:
    weight = nm_masked(torch.rand(32, 64) + 1, 2, 4, 32)
    weight[5, (weight[0] == 0).nonzero()[3]] = 1e-30
    with pytest.raises(OperandError, match="32:2:4: some 32 columns keep 3 of 4 inputs"):
        prepack_linear(weight, format="tiles 32:2:4")
    with pytest.raises(OperandError, match=r"no kernel for a weight of torch\.float64"):
        prepack_linear(torch.zeros(32, 64).double(), format="tiles 32:2:4")
    for format in ("tiles 48:2:4", "tiles 8:2:4", "tiles 128:2:4", "tiles 32:5:4", "tiles 2:4"):
        with pytest.raises(OperandError, match="or tiles v:n:m"):
            prepack_linear(torch.zeros(256, 64), format=format)
    stored = prepack_linear(torch.zeros(32, 64), format="tiles 32:2:4")
    for x in (torch.zeros(3, 64).half(), torch.zeros(3, 36)):
        with pytest.raises(OperandError, match="a weight in the format tiles 32:2:4 is"):
            products.linear(x, stored, None, format="tiles 32:2:4")


@pytest.mark.parametrize(
    ("kept", "channels", "format"),
    [
        (NM(2, 4, 16), 8, "tiles 16:2:4"),
        (NM(2, 4, 48), 8, "tiles 16:2:4"),
        (NM(1, 8, 64), 8, "tiles 64:1:8"),
        (NM(1, 8, 512), 8, "tiles 64:1:8"),
        (NM(2, 4, 8), 8, None),
        (NM(2, 4), 8, None),
        (NM(2, 4, 16), 6, None),
    ],
)
def test_names(kept: NM, channels: int, format: str | None) -> None:
    assert tiles.name(kept, channels) == format


# -- the kernel ----------------------------------------------------------------------------------


@st.composite
def sparse_cases(draw: st.DrawFn) -> tuple[Case, int]:
    """With a weight that keeps N of M inputs, and how wide a tile is."""
    kept = NM(*draw(SHARES), draw(st.sampled_from([16, 32, 48, 64])))
    channels, width = draw(st.integers(1, 6)) * kept.m, draw(st.integers(1, 3)) * kept.v
    case = replace(draw(cases()), groups=1, transposed=False, channels=channels, width=width)
    most = tiles.tile_columns(kept.v)
    columns = draw(st.sampled_from([columns for columns in (16, 32, 64) if columns <= most]))
    return replace(case, kept=kept), columns


@interpreted
@settings(max_examples=25)
@given(sparse_cases(), st.sampled_from([None, 1, 2, 3, 8]), st.sampled_from([16, 32]))
def test_kernel(drawn: tuple[Case, int], splits: int | None, depth: int) -> None:
    case, columns = drawn
    args = arguments(case)
    with guarded_accesses():
        got = on_cuda(*args, splits=splits, config=kernels.tile(16, columns, depth, 4, 2))
    check(case, got)


@interpreted
@settings(max_examples=15)
@given(
    st.sampled_from([DENSE, NM(2, 4, 16), NM(1, 8, 32)]),
    st.integers(2, 20),
    st.integers(1, 3),
    st.integers(1, 5),
    st.booleans(),
    SEEDS,
)
def test_linear(kept: NM, high: int, columns: int, groups: int, bias: bool, seed: int) -> None:
    """Without a kernel map each row reads its own site: the convolution with one tap."""
    case = Case(channels=8 * groups, width=columns * kept.v, grid=(high, 2), kernel=(1, 1))
    case = replace(case, kept=kept, seed=seed, bias=bias, halo=ABSENT, share=1.1)
    case = replace(case, shift=False, residual=False, activation="none", scale=1.0)
    x, _, _, _, weight, shift, *_, format = arguments(case)
    parts = named(format).parts
    assert parts is not None
    values, lists = parts(weight, x.shape[2], x.dtype)
    epilogue = (shift, None, "none", 0.0, 1.0, None)
    config = kernels.tile(16, 16, 16, 4, 2)
    with guarded_accesses():
        got = kernels.launch(x, None, None, None, values, *epilogue, lists, config=config)
    check(case, got)


@interpreted
def test_what_is_not_kept_is_not_read() -> None:
    case = Case(channels=16, width=32, kept=NM(2, 4, 16), kernel=(1, 1), halo=ABSENT, share=1.1)
    args = arguments(case)
    unread = (arguments(case, "plain")[4][0] == 0).all(1)
    assert 0 < unread.sum() < 8
    args[0][..., unread] = torch.nan
    with guarded_accesses():
        check(case, on_cuda(*args, config=kernels.tile(16, 16, 16, 4, 2)))


@compiled
def test_interpreted() -> None:
    run_interpreted(__file__)


def launched(weight: Tensor, lists: Tensor) -> Tensor:
    x, kernel_map = torch.zeros(1, 5, 8), torch.zeros(3, 2, dtype=torch.int64)
    return kernels.launch(
        x, None, None, kernel_map, weight, None, None, "none", 0.0, 1.0, None, lists
    )


@pytest.mark.parametrize(
    ("weight", "lists", "match"),
    [
        ((1, 8, 48), (1, 8), "1 lists do not serve 48 columns"),
        ((1, 8, 48), (2, 8), "2 lists do not serve 48 columns"),
        ((1, 8, 32), (4, 8), "4 lists do not serve 32 columns"),
        ((1, 8, 32), (0, 8), "0 lists do not serve 32 columns"),
        ((1, 8, 32), (2, 7), "reads lists as int32"),
        ((1, 7, 32), (2, 7), "reads weight as float32"),
        ((2, 8, 32), (2, 8), "reads weight as float32"),
    ],
)
def test_lists_of_another_weight_are_refused(
    weight: tuple[int, ...], lists: tuple[int, ...], match: str
) -> None:
    with pytest.raises(OperandError, match=match):
        launched(torch.zeros(weight), torch.zeros(lists, dtype=torch.int32))


def test_lists_of_another_dtype_are_refused() -> None:
    with pytest.raises(OperandError, match="reads lists as int32"):
        launched(torch.zeros(1, 8, 32), torch.zeros(2, 8, dtype=torch.int64))


@pytest.mark.parametrize("per_list", [16, 32, 64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_tiles_are_no_wider_than_what_shares_a_list(per_list: int, dtype: str) -> None:
    arrays = {"x": torch.empty(0, dtype=DTYPES[dtype])}
    for rows in (1, 100, 500, 5000):
        chosen = kernels.suited(
            kernels.TILES, arrays, rows=rows, WIDTH=per_list, CHANNELS=64, PER_LIST=per_list
        )
        assert chosen and len(set(chosen)) == len(chosen)
        assert all(per_list % config.kwargs["BLOCK_N"] == 0 for config in chosen)


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "per_list"), [("bf16", 16), ("bf16", 64), ("fp16", 64), ("fp32", 64)]
)
def test_cubins(capability: int, dtype: str, per_list: int) -> None:
    """Every tile of a 2:4 weight for bfloat16, else the largest one; with that also parts of a
    linear layer, which has no kernel map."""
    known = {"WIDTH": 640, "CHANNELS": 160, "INPUTS": 320, "PER_LIST": per_list}
    arrays = {"x": torch.empty(0, dtype=DTYPES[dtype])}
    chosen = [
        config
        for rows in (16, 128, 512, 4096)
        for config in kernels.suited(kernels.TILES, arrays, rows=rows, **known)
    ]
    how = {"ACTIVATION": "silu", "PRECISION": "tf32" if dtype == "fp32" else "ieee", "GROUPS": 1}
    absent = dict.fromkeys(("kernel_map", "halo", "halo_sites", "shift", "residual"))
    configs = list(dict.fromkeys(chosen)) if dtype == "bf16" else chosen[-1:]
    forms: list[tuple[Any, dict[str, None], dict[str, int]]] = [
        *((config, {}, {"TAPS": 9, "SPLITS": 1}) for config in configs),
        (configs[-1], absent, {"TAPS": 1, "SPLITS": 2}),
    ]
    for config, gone, sizes in forms:
        kinds = types(dtype, split=sizes["SPLITS"] > 1) | {"lists": "*i32"}
        kinds = {name: kind for name, kind in kinds.items() if name not in gone}
        constants = {**known, **config.kwargs, **how, **sizes, **gone}
        options = (capability, config.num_warps, config.num_stages)
        cubin = compile_cubin(kernels.matmul_kernel, kinds, constants, *options)
        assert_fits(cubin)
        assert "mma" in cubin.asm["ptx"]
        assert stack_bytes(cubin) == 0
