"""Updated group statistics: the kernel against float64, under the interpreter and the assembler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen import tables
from sparsify.codegen.group_statistics import group_statistics
from sparsify.codegen.group_statistics.reference import reference
from torch import Tensor

triton = pytest.importorskip("triton")

from sparsify.codegen.group_statistics import triton as kernels  # noqa: E402
from sparsify.codegen.operators.device import SHARED_BYTES  # noqa: E402

from tests.gpu_free.cubins import compile_cubin  # noqa: E402
from tests.gpu_free.interpreted import (  # noqa: E402
    compiled,
    guarded_accesses,
    interpreted,
    run_interpreted,
)

EPS = 1e-5


def arguments(
    batch: int, groups: int, channels: int, positions: int, share: float, in_place: bool, seed: int
) -> tuple[Any, ...]:
    """Of :func:`reference`; repetitions in the padded table have other, wrong values."""
    random = torch.Generator().manual_seed(seed)
    old = torch.randn(batch, positions, groups * channels, generator=random) * 2 + 0.5
    mask = torch.rand(1, positions, generator=random) < share
    sites = tables.active_sites(mask, padded=True)
    x = old[:, sites] + torch.randn(batch, len(sites), groups * channels, generator=random)
    count = len(sites.unique())
    x[:, count:] = 1e4
    grouped = old.unflatten(2, (groups, channels)).transpose(1, 2).flatten(2)
    mean, variance = grouped.mean(2), grouped.var(2, correction=0)
    recorded = old if in_place else old[:, sites]
    return x, recorded, in_place, mean, (variance + EPS).rsqrt(), positions, EPS, sites


def truth(args: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    exact = [y.double() if isinstance(y, Tensor) and y.is_floating_point() else y for y in args]
    return reference(*exact)


def check(got: tuple[Tensor, Tensor], args: tuple[Any, ...]) -> None:
    """Sums of as many terms as a group has values, in float32, relative to their magnitudes."""
    x, _, _, mean, _, size, _, sites, *_ = args
    active = x[:, : len(sites.unique())].double()
    terms = active.numel() // mean.numel()
    single = torch.finfo(torch.float32).eps
    share = terms / (size * x.shape[2] // mean.shape[1])
    largest = float(active.abs().max()) + 2.5 + 2 * float(mean.abs().max())
    (new_mean, new_rstd), (want_mean, want_rstd) = got, truth(args)
    bound = (terms + 8) * single * (largest + 1)
    assert float((new_mean - want_mean).abs().max()) <= bound * (share + 1)
    variance, want = new_rstd.double() ** -2, want_rstd**-2
    assert float((variance - want).abs().max()) <= bound * largest * (share + 1)


CASES = st.tuples(
    st.integers(1, 2),
    st.sampled_from([1, 3]),
    st.sampled_from([1, 5, 16]),
    st.integers(1, 60),
    st.sampled_from([0.0, 0.2, 1.1]),
    st.booleans(),
    st.integers(0, 1000),
)


@interpreted
@settings(max_examples=25)  # interpreted, every one takes long
@given(CASES)
def test_kernel(case: tuple[Any, ...]) -> None:
    args = arguments(*case)
    with guarded_accesses():
        check(kernels.launch(*args), args)


def of_items(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same items, with the rows of all in one; those of the first come in reverse."""
    x, old, in_place, mean, rstd, size, eps, sites = args
    count, every = len(sites.unique()), torch.arange(len(x))
    kept = sites[:count] + size * every[:, None]
    order = torch.cat([kept[:1].flip(1), kept[1:]]).flatten()
    flat, rows = x[:, :count].flatten(0, 1), torch.arange(len(x) * count).view(-1, count)
    taken = torch.cat([rows[:1].flip(1), rows[1:]]).flatten()
    before = old.flatten(0, 1) if in_place else old[:, :count].flatten(0, 1)[taken]
    own = every.repeat_interleave(count)
    return flat[taken][None], before[None], in_place, mean, rstd, size, eps, order, own


@interpreted
@settings(max_examples=25)
@given(CASES)
def test_kernel_of_items(case: tuple[Any, ...]) -> None:
    args = arguments(*case)
    with guarded_accesses():
        check(kernels.launch(*of_items(args)), args)


@compiled
def test_items_are_those_alone() -> None:
    args = arguments(3, 2, 4, 30, 0.4, True, 0)
    torch.testing.assert_close(reference(*of_items(args)), reference(*args))
    torch.library.opcheck(torch.ops.sparsify.group_statistics.default, of_items(args))


@compiled
def test_interpreted() -> None:
    run_interpreted(__file__)


@compiled
@pytest.mark.parametrize("in_place", [False, True])
def test_operator(in_place: bool) -> None:
    """Against the statistics of the whole edited map."""
    args = arguments(2, 3, 4, 30, 0.4, in_place, 0)
    x, recorded, _, mean, rstd, size, eps, sites = args
    old = arguments(2, 3, 4, 30, 0.4, True, 0)[1]
    count = len(sites.unique())
    edited = old.index_copy(1, sites[:count], x[:, :count]).double()
    grouped = edited.unflatten(2, (3, 4)).transpose(1, 2).flatten(2)
    packed = recorded if in_place else recorded.mT
    got = group_statistics(x.mT, packed, in_place, mean, rstd, size, eps, sites)
    torch.testing.assert_close(got[0].double(), grouped.mean(2), atol=1e-5, rtol=1e-5)
    want = (grouped.var(2, correction=0) + EPS).rsqrt()
    torch.testing.assert_close(got[1].double(), want, atol=1e-5, rtol=1e-5)
    torch.library.opcheck(torch.ops.sparsify.group_statistics.default, args)


@compiled
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(("dtype", "by_item"), [("fp16", True), ("bf16", False), ("fp32", True)])
def test_cubins(capability: int, dtype: str, by_item: bool) -> None:
    pointers = ("x", "old", "mean", "rstd", "new_mean", "new_rstd")
    types = {**dict.fromkeys(pointers, f"*{dtype}"), "sites": "*i64", "rows": "i32"}
    types |= {"old_rows": "i32", "count": "fp32", "eps": "fp32"}
    constants: dict[str, Any] = {"GROUPS": 32, "CHANNELS": 10, "IN_PLACE": True}
    constants |= {"BLOCK_S": 256, "BLOCK_C": 16}
    (types if by_item else constants)["items"] = "*i64" if by_item else None
    cubin = compile_cubin(kernels.statistics_kernel, types, constants, capability, 8, 3)
    assert cubin.asm["cubin"] and cubin.metadata.shared <= SHARED_BYTES
