"""The graphs that CUDA gets of a model with sparse weights, on the CPU: which format each weight is
stored in, and what they compute. In the place of torch's products on sparse tensor cores stand ones
that unpack their operand first, in the order of CUTLASS: it has as many numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sparsify.codegen import products
from sparsify.codegen.errors import OperandError
from sparsify.codegen.gather_conv import gather_conv
from sparsify.codegen.gather_matmul import semi_structured
from sparsify.codegen.gather_matmul.reference import reference
from sparsify.codegen.nm import nm_masked
from sparsify.codegen.nm.pattern import NM
from sparsify.codegen.prepack import prepack_conv, prepack_linear
from sparsify.passes.costs import Costs
from torch import Tensor, nn
from torch.sparse import _semi_structured_conversions as cutlass

import sparsify
from tests.gpu_free.as_on_cuda import as_on_cuda, sparse_weights
from tests.test_sparse_products import (
    CLOSE,
    Convolutions,
    Transformer,
    check_graphs,
    inputs,
    masked,
    wrapped,
)

EPS = torch.finfo(torch.float32).eps


def compress(dense: Tensor) -> Tensor:
    """[m, k] -> [m, k * 9 / 16]."""
    assert dense.is_contiguous()
    kept, inputs = cutlass.sparse_semi_structured_from_dense_cutlass(dense)
    return torch.cat([kept, inputs.view(dense.dtype)], 1)


def multiply(
    compressed_A: Tensor,  # noqa: N803 (torch's)
    dense_B: Tensor,  # noqa: N803
    bias: Tensor | None = None,
    alpha: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    transpose_result: bool = False,
    *search: int,
) -> Tensor:
    """What the library asks of its operands, and its result in one piece."""
    depth, rows = dense_B.shape
    assert rows % 8 == depth % 16 == 0 and rows and transpose_result
    assert dense_B.is_contiguous() or dense_B.t().is_contiguous()
    kept, inputs = compressed_A.split([depth // 2, depth // 16], 1)
    own = inputs.contiguous().view(torch.int16)
    matrix = cutlass.sparse_semi_structured_to_dense_cutlass(kept.contiguous(), own)
    return F.linear(dense_B.t(), matrix, bias).contiguous()


@pytest.fixture(autouse=True)
def library() -> Iterator[None]:
    """Torch's operators on the CPU, for a while."""
    with torch.library._scoped_library("aten", "IMPL") as own:
        own.impl("_cslt_compress", compress, "CPU")
        own.impl("_cslt_sparse_mm", multiply, "CPU")
        yield


PAIRS = st.sampled_from([(2, 4, 1), (1, 4, 1), (1, 2, 8), (2, 4, 16)])
HALVES = st.sampled_from([torch.float16, torch.bfloat16])


@given(
    PAIRS,
    HALVES,
    *(st.integers(1, most) for most in (3, 2, 4, 20, 2)),
    st.booleans(),
    st.booleans(),
)
def test_products(
    kept: tuple[int, int, int],
    dtype: torch.dtype,
    groups: int,
    columns: int,
    taps: int,
    sites: int,
    batch: int,
    bias: bool,
    is_strided: bool,
) -> None:
    """Gathered, and linear: in the dtype of the weight, and to the bit of its masked product."""
    torch.manual_seed(sites)
    channels, width = 32 * groups, 32 * columns
    weight = nm_masked(torch.randn(width, channels, taps, 1), *kept).to(dtype)
    rows, shift = torch.randn(batch, 24, channels).to(dtype), torch.randn(width).to(dtype)
    rows = rows.mT.contiguous().mT if is_strided else rows
    shift = shift if bias else None
    kernel_map = torch.randint(24, (sites, taps))
    stored, matrix = (prepack_conv(weight, format=format) for format in ("2:4", "plain"))
    got = torch.ops.sparsify.gather_matmul(rows, kernel_map, stored, shift, "2:4")
    exact = (None if t is None else t.double() for t in (matrix, shift))
    want = reference(rows.double(), kernel_map, *exact)
    largest = reference(rows.double().abs(), kernel_map, matrix.double().abs(), None).max() + 5
    # A sum in float32 of ``depth`` products and a bias, then rounded.
    bound = float(largest) * ((taps * channels + 1) * EPS + torch.finfo(dtype).eps)
    assert got.dtype == dtype and got.is_contiguous()
    torch.testing.assert_close(got.double(), want, rtol=0.0, atol=bound)
    one = weight[:, :, 0, 0]
    stored = prepack_linear(one, format="2:4")
    got = products.linear(rows, stored, shift, format="2:4")
    want = F.linear(rows.double(), one.double(), None if shift is None else shift.double())
    torch.testing.assert_close(got.double(), want, rtol=0.0, atol=bound)


@given(PAIRS, HALVES, st.integers(1, 3), st.integers(1, 4), st.integers(0, 99))
def test_what_is_stored(
    kept: tuple[int, int, int], dtype: torch.dtype, columns: int, groups: int, seed: int
) -> None:
    """Is the weight to the bit."""
    torch.manual_seed(seed)
    weight = nm_masked(torch.randn(32 * columns, 32 * groups), *kept).to(dtype)
    stored = prepack_linear(weight, format="2:4")
    eye = torch.eye(weight.shape[1], dtype=dtype)
    assert torch.equal(products.linear(eye[None], stored, None, format="2:4")[0].t(), weight)


def test_more_than_two_of_four_are_refused() -> None:
    weight = nm_masked(torch.rand(32, 64) + 1, 2, 4).half()
    weight[5, (weight[5] == 0).nonzero()[3]] = 1e-7
    with pytest.raises(OperandError, match="1:2:4: some column keeps 3 of 4 inputs"):
        prepack_linear(weight, format="2:4")
    for shape in ((32, 24), (24, 32)):
        with pytest.raises(OperandError, match="16 has to divide"):
            prepack_linear(torch.zeros(shape).half(), format="2:4")


def test_where_sparse_tensor_cores_are(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, half = torch.device("cuda", 0), torch.float16
    assert not semi_structured.runs(torch.device("cpu"), half)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    for capability, are_there in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert semi_structured.runs(cuda, half) is are_there
        assert not semi_structured.runs(cuda, torch.float32)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)
    assert not semi_structured.runs(cuda, half)


# -- whole models --------------------------------------------------------------------------------

WIDE = Costs(tile_columns=16, few_linear_macs=0)


@pytest.fixture
def cuda() -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(as_on_cuda())
        stack.enter_context(sparse_weights())
        yield


def chosen(sparse: Any, name: str, dtype: torch.dtype) -> Counter[str]:
    """Formats of the products in a graph, that are not plain."""
    nodes = sparse.graphs(inputs()[0].to(dtype))[name].graph.nodes
    found = Counter(node.kwargs["format"] for node in nodes if "format" in node.kwargs)
    del found["plain"]
    return found


CASES: list[tuple[Callable[[], nn.Module], NM, Costs, str, dict[str, int]]] = [
    (Convolutions, NM(1, 8, 16), WIDE, "update", {"tiles 16:1:8": 4}),
    (Convolutions, NM(1, 8, 16), WIDE, "dense", {}),  # the library's: whole maps, all of them
    (Convolutions, NM(2, 4, 32), WIDE, "update", {"tiles 32:2:4": 3, "2:4": 1}),
    (Convolutions, NM(1, 8, 32), Costs(), "update", {}),  # too narrow for a tile, no 2:4
    (Convolutions, NM(3, 4, 32), WIDE, "update", {}),  # too much is kept
    (Convolutions, NM(2, 4), Costs(few_linear_macs=0), "update", {"2:4": 4}),
    (Convolutions, NM(1, 2, 4), Costs(few_linear_macs=0), "update", {"2:4": 4}),
    (Transformer, NM(2, 4, 32), WIDE, "update", {"2:4": 4}),
    (Transformer, NM(2, 4, 32), WIDE, "dense", {"2:4": 4}),
    (Transformer, NM(1, 8, 32), WIDE, "update", {"tiles 32:1:8": 4}),
    (
        Transformer,
        NM(1, 8, 32),
        Costs(tile_columns=16, few_linear_macs=0, few_rows=3),
        "update",
        {},
    ),
    (Transformer, NM(1, 8, 32), WIDE, "dense", {}),
]


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(("kind", "kept", "costs", "graph", "formats"), CASES)
def test_choice(
    kind: Callable[[], nn.Module], kept: NM, costs: Costs, graph: str, formats: dict[str, int]
) -> None:
    sparse = wrapped(masked(kind, *kept).half(), costs=costs)
    assert chosen(sparse, graph, torch.float16) == formats


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("kind", [Convolutions, Transformer])
@pytest.mark.parametrize("kept", [NM(1, 8, 16), NM(2, 4, 32)])
@torch.no_grad()
def test_all_graphs_run_sparse(kind: Callable[[], nn.Module], kept: NM) -> None:
    model = masked(kind, *kept)
    sparse = wrapped(model, costs=WIDE)
    assert chosen(sparse, "update", torch.float32) == {f"tiles {kept.v}:{kept.n}:{kept.m}": 4}
    check_graphs(sparse, model)


@pytest.mark.usefixtures("cuda")
def test_the_kernel_has_what_follows_too() -> None:
    """Of a convolution in tiles as of a plain one; a product on sparse tensor cores stands alone,
    and so does that of a linear layer or a 1x1 convolution."""
    for kept, count in ((NM(1, 8, 16), 3), (NM(2, 4), 0)):
        sparse = wrapped(masked(Convolutions, *kept).half(), costs=WIDE)
        nodes = list(sparse.graphs(inputs()[0].half())["update"].graph.nodes)
        fused = [node for node in nodes if node.target is gather_conv]
        tiled = [node for node in fused if node.kwargs["format"].startswith("tiles ")]
        assert len(tiled) == count and len(fused) > count
        assert not any(node.kwargs["format"] == "2:4" for node in fused)
        activations = {node.kwargs.get("activation") for node in tiled}
        assert ("silu" in activations) is bool(tiled)


@torch.no_grad()
def test_the_same_after_an_export(tmp_path: Path) -> None:
    """Which is plain."""
    model, (x, edited, mask) = masked(Convolutions, 1, 8, 16), inputs()
    with sparse_weights():
        sparse = wrapped(model, costs=WIDE)
        assert chosen(sparse, "update", x.dtype)["tiles 16:1:8"] == 4
        sparse.export(tmp_path / "net", x, format="pt2")
    loaded = sparsify.load(tmp_path / "net")
    got = loaded.update(loaded.record(x)[1], edited, mask=mask)
    torch.testing.assert_close(got, model(edited), **CLOSE)
