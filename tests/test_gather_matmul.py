"""The CPU kernel against its reference: products of gathered rows, and linear layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sparsify.codegen import products
from sparsify.codegen.errors import OperandError
from sparsify.codegen.gather_matmul import cpp
from sparsify.codegen.gather_matmul.reference import reference
from sparsify.codegen.prepack import fits, prepack_linear
from torch import Tensor

SEEDS = st.integers(0, 99)
EPS = torch.finfo(torch.float32).eps
WIDTHS = st.integers(1, 20).map(lambda n: 16 * n)
DEPTHS = st.sampled_from([1, 3, 16, 33, 300, 1023, 1025, 2100])
SITES = st.integers(1, 40) | st.integers(235, 500)


def within(depth: int) -> dict[str, float]:
    """Two sums, in two orders, of ``depth`` products of values drawn from [-1, 1]: each step rounds
    a partial sum, which stays below 2 sqrt(depth) (six standard deviations)."""
    return {"rtol": 0.0, "atol": 2 * (depth + 1) * depth**0.5 * EPS}


@given(WIDTHS, DEPTHS, SITES, st.integers(1, 9), st.integers(1, 3), st.booleans(), SEEDS)
def test_kernel(
    width: int, channels: int, sites: int, taps: int, batch: int, bias: bool, seed: int
) -> None:
    taps = taps if channels < 300 else 1 + taps % 2
    random = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random) * 2 - 1

    rows, weight = drawn(batch, 50, channels), drawn(taps * channels, width)
    kernel_map = torch.randint(50, (sites, taps), generator=random)
    shift = drawn(width) if bias else None
    order = cpp.panels(weight)
    assert order.shape == (weight.numel(),)
    got = cpp.launch(rows, kernel_map, order, shift)
    want = reference(rows, kernel_map, weight[None], shift)
    torch.testing.assert_close(got, want, **within(taps * channels))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=3), WIDTHS, DEPTHS, SEEDS)
def test_linear(shape: list[int], width: int, depth: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    x, weight, bias = (
        torch.rand(*size, generator=random) * 2 - 1
        for size in ((*shape, depth), (width, depth), (width,))
    )
    order = prepack_linear(weight, format="panels")
    got = products.linear(x, order, bias, format="panels")
    torch.testing.assert_close(got, F.linear(x, weight, bias), **within(depth))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize(("sites", "width"), [(1, 16), (7, 80), (241, 64), (900, 320)])
def test_any_number_of_threads_gives_the_same_bits(threads: int, sites: int, width: int) -> None:
    rows, weight = torch.randn(1, 90, 24), torch.randn(9 * 24, width)
    kernel_map, order = torch.randint(90, (sites, 9)), cpp.panels(weight)
    before = torch.get_num_threads()
    want = cpp.launch(rows, kernel_map, order, None)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(cpp.launch(rows, kernel_map, order, None), want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("operator", ["gather_matmul", "linear", "plain linear"])
def test_operator_is_well_declared(operator: str) -> None:
    order = cpp.panels(torch.randn(9 * 4, 32))
    args = {
        "gather_matmul": (torch.randn(2, 10, 4), torch.randint(10, (5, 9)), order, None, "panels"),
        "linear": (torch.randn(2, 5, 36), order, torch.randn(32), "panels"),
        "plain linear": (torch.randn(2, 5, 36), torch.randn(32, 36), None, "plain"),
    }[operator]
    torch.library.opcheck(getattr(torch.ops.sparsify, operator.split()[-1]).default, args)


@pytest.mark.parametrize(
    ("width", "groups", "dtype", "device", "expected"),
    [
        (32, 1, torch.float32, "cpu", True),
        (24, 1, torch.float32, "cpu", False),
        (32, 2, torch.float32, "cpu", False),
        (32, 1, torch.bfloat16, "cpu", False),
        (32, 1, torch.float64, "cpu", False),
        (32, 1, torch.float32, "cuda", False),
    ],
)
def test_what_fits_into_panels(
    width: int, groups: int, dtype: torch.dtype, device: str, expected: bool
) -> None:
    assert fits("panels", torch.device(device), dtype, width, groups) is expected
    assert fits("plain", torch.device(device), dtype, width, groups)


def test_unknown_format() -> None:
    with pytest.raises(OperandError, match="format='tiles': a weight is stored as plain or panels"):
        prepack_linear(torch.randn(16, 8), format="tiles")
