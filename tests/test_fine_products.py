"""Products with sites along the lanes, where each output or 16 of them keep N of each M inputs, and
how these weights are stored; ``test_sparse_products`` has the graphs of models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sparsify.codegen import products
from sparsify.codegen.errors import OperandError
from sparsify.codegen.gather_matmul import cpp, fine
from sparsify.codegen.gather_matmul.fine import KINDS
from sparsify.codegen.gather_matmul.reference import reference
from sparsify.codegen.nm import nm_masked
from sparsify.codegen.prepack import prepack_conv, prepack_linear
from torch import Tensor

from tests.test_sparse_products import SEEDS, SHARES, within

pytestmark = pytest.mark.skipif(
    not fine.runs(torch.device("cpu"), torch.float32), reason="there is no C++ compiler"
)
WIDE = st.sampled_from([(50, 100), (3, 200), (100, 256)])
"""Groups that fill more than half a block, or more than one."""


def name(kind: tuple[str, int], n: int, m: int) -> str:
    """Of a format."""
    prefix, v = kind
    return f"{prefix} {v}:{n}:{m}".strip()


@given(
    st.sampled_from(KINDS),
    SHARES | WIDE,
    st.integers(1, 30),
    st.integers(1, 5) | st.integers(33, 40),
    st.integers(1, 9),
    st.integers(1, 200),
    st.integers(1, 3),
    st.booleans(),
    SEEDS,
)
def test_kernel(
    kind: tuple[str, int],
    share: tuple[int, int],
    groups: int,
    columns: int,
    taps: int,
    sites: int,
    batch: int,
    bias: bool,
    seed: int,
) -> None:
    """The product equals the one of the masked weight, and the dense kernel's to the bit: it adds
    what is left in the same order, and zeros change no sum."""
    (n, m), random = share, torch.Generator().manual_seed(seed)
    groups = groups if m < 50 else 1 + groups % 3
    channels, width = groups * m, columns * 16

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random) * 2 - 1

    weight = nm_masked(drawn(width, channels, taps, 1), n, m, kind[1])
    rows, shift = drawn(batch, 50, channels), drawn(width) if bias else None
    kernel_map = torch.randint(50, (sites, taps), generator=random)
    format, kept = name(kind, n, m), weight.numel() * n // m
    stored = prepack_conv(weight, format=format)
    assert stored.numel() == kept + -(-kept // kind[1] // 4)
    got = torch.ops.sparsify.gather_matmul(rows, kernel_map, stored, shift, format)
    matrix = prepack_conv(weight, format="plain")
    depth = taps * channels
    torch.testing.assert_close(got, reference(rows, kernel_map, matrix, shift), **within(depth))
    if channels <= 1024:  # else the dense kernel sums in other parts
        assert torch.equal(got, cpp.launch(rows, kernel_map, cpp.panels(matrix[0]), shift))


@given(
    st.sampled_from(KINDS),
    SHARES,
    st.lists(st.integers(1, 20), min_size=1, max_size=3),
    st.integers(1, 9),
    SEEDS,
)
def test_linear(
    kind: tuple[str, int], share: tuple[int, int], shape: list[int], columns: int, seed: int
) -> None:
    (n, m), random = share, torch.Generator().manual_seed(seed)
    depth = 5 * m
    x, dense = (
        torch.rand(*size, generator=random) * 2 - 1
        for size in ((*shape, depth), (16 * columns, depth))
    )
    weight, format = nm_masked(dense, n, m, kind[1]), name(kind, n, m)
    stored = prepack_linear(weight, format=format)
    got = products.linear(x, stored, None, format=format)
    torch.testing.assert_close(got, F.linear(x, weight), **within(depth))


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_no_numbers_stay_at_their_sites(kind: tuple[str, int]) -> None:
    """Also beside lanes that have no site."""
    weight, format = nm_masked(torch.randn(16, 8), 2, 4, kind[1]), name(kind, 2, 4)
    x = torch.randn(13, 8)
    x[12], x[3] = torch.nan, torch.inf
    got = products.linear(x, prepack_linear(weight, format=format), None, format=format)
    is_number = torch.ones(13, dtype=torch.bool)
    is_number[[3, 12]] = False
    assert torch.equal(got.isfinite().all(1), is_number)


def test_fewer_than_n_are_stored_with_zeros() -> None:
    weight = torch.zeros(16, 8)
    weight[3, 5] = 2.0
    x = torch.randn(5, 8)
    stored = prepack_linear(weight, format="1:2:4")
    assert torch.equal(products.linear(x, stored, None, format="1:2:4"), F.linear(x, weight))


@given(st.integers(0, 31), st.integers(0, 31), SEEDS)
def test_a_number_too_many_is_refused(row: int, place: int, seed: int) -> None:
    """Whichever it is: nothing that a weight has is dropped."""
    torch.manual_seed(seed)
    weight = nm_masked(torch.rand(32, 64) + 1, 2, 4)
    zeros = (weight[row] == 0).nonzero()[:, 0]
    weight[row, zeros[place]] = 1e-30
    with pytest.raises(OperandError, match="1:2:4: some column keeps 3 of 4 inputs"):
        prepack_linear(weight, format="1:2:4")


@pytest.mark.parametrize(
    ("format", "match"),
    [
        ("1:3:2", "or 1:n:m or sites 16:n:m or tiles v:n:m, 0 < n <= m"),
        ("sites 8:2:4", "or sites 16:n:m or"),
        ("sites 16:4:512", "m <= 256"),
        ("1:0:4", "0 < n <= m"),
        ("1:4:512", "m <= 256"),
        ("1:2:3", "3 has to divide 64 inputs, and 1 32 columns"),
    ],
)
def test_formats_that_are_none(format: str, match: str) -> None:
    with pytest.raises(OperandError, match=match):
        prepack_linear(torch.zeros(32, 64), format=format)


def test_operands_are_checked() -> None:
    rows, index = torch.randn(1, 7, 8), torch.randint(7, (3, 2))
    weight = nm_masked(torch.randn(16, 8, 2), 2, 4).permute(2, 1, 0).flatten(0, 1)
    stored = fine.pack(weight, 1, 2, 4)
    fine.launch(rows, index, stored, None, 1, 2, 4)
    for beyond in (-1, 7, 1 << 40):
        with pytest.raises(OperandError, match="kernel_map points outside of the 7 rows: make"):
            fine.launch(rows, index.index_fill(0, torch.tensor(1), beyond), stored, None, 1, 2, 4)
    for other, x in ((stored.float(), rows), (stored[None], rows), (stored, rows[..., :7])):
        with pytest.raises(OperandError, match="1:2:4 is int32 with one axis"):
            fine.launch(x, index, other, None, 1, 2, 4)
    with pytest.raises(OperandError, match="no width that 16 divides"):
        fine.launch(rows, index, stored[:-10], None, 1, 2, 4)
    with pytest.raises(OperandError, match="bias"):
        fine.launch(rows, index, stored, torch.zeros(17), 1, 2, 4)


def test_no_list_reads_beyond_the_tile() -> None:
    """Of a damaged weight: whatever a byte says, the kernel has room for so many inputs."""
    stored = prepack_linear(nm_masked(torch.randn(16, 8), 2, 4), format="1:2:4")
    stored[-16:] = -1  # places of 255
    assert products.linear(torch.randn(5, 8), stored, None, format="1:2:4").shape == (5, 16)


@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize(("sites", "width"), [(9, 16), (9, 48), (300, 16), (300, 1040)])
def test_any_number_of_threads_gives_the_same_bits(threads: int, sites: int, width: int) -> None:
    rows, weight = torch.randn(1, 90, 24), nm_masked(torch.randn(width, 24, 3, 3), 2, 4)
    kernel_map, stored = torch.randint(90, (sites, 9)), prepack_conv(weight, format="1:2:4")
    before = torch.get_num_threads()
    want = fine.launch(rows, kernel_map, stored, None, 1, 2, 4)
    try:
        torch.set_num_threads(threads)
        assert torch.equal(fine.launch(rows, kernel_map, stored, None, 1, 2, 4), want)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("operator", ["gather_matmul", "linear"])
def test_operator_is_well_declared(operator: str) -> None:
    stored = prepack_linear(nm_masked(torch.randn(32, 36), 2, 4), format="1:2:4")
    args: dict[str, tuple[Any, ...]] = {
        "gather_matmul": (torch.randn(2, 10, 4), torch.randint(10, (5, 9)), stored, None, "1:2:4"),
        "linear": (torch.randn(2, 5, 36), stored, torch.randn(32), "1:2:4"),
    }
    torch.library.opcheck(getattr(torch.ops.sparsify, operator).default, args[operator])
