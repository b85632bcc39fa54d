"""Multiply-accumulates of a node are half of the operations that torch counts when it runs."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from sparsify.passes.macs import macs
from torch import Tensor
from torch.fx import Graph
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
SIZE = st.integers(1, 6)
SHAPE = st.lists(SIZE, min_size=1, max_size=3)


def empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def agrees(target: Any, *args: Any, **kwargs: Any) -> None:
    graph = Graph()
    nodes = [graph.placeholder("x") if isinstance(arg, Tensor) else arg for arg in args]
    node = graph.call_function(target, tuple(nodes), kwargs)
    for given_node, value in zip(nodes, args, strict=True):
        if isinstance(value, Tensor):
            given_node.meta["val"] = value
    with FlopCounterMode(display=False) as counter:
        node.meta["val"] = target(*args, **kwargs)
    assert 2 * macs(node) == counter.get_total_flops() > 0


@given(
    st.integers(1, 3), st.booleans(), SIZE, SIZE, SIZE, st.integers(1, 3), st.booleans(), st.data()
)
def test_convolutions(
    rank: int, transposed: bool, batch: int, ins: int, outs: int, groups: int, bias: bool, data: Any
) -> None:
    def each(low: int, high: int) -> list[int]:
        return data.draw(st.lists(st.integers(low, high), min_size=rank, max_size=rank))

    name = f"conv_transpose{rank}d" if transposed else f"conv{rank}d"
    target = getattr(getattr(aten, name), "input" if transposed and rank > 1 else "default")
    first, second = (groups * ins, outs) if transposed else (groups * outs, ins)
    weight, x = empty(first, second, *each(1, 3)), empty(batch, groups * ins, *each(5, 9))
    shift = empty(groups * outs) if bias else None
    stride, padding, dilation = each(1, 2), each(0, 1), each(1, 2)
    rest = ([0] * rank, groups, dilation) if transposed else (dilation, groups)
    agrees(target, x, weight, shift, stride, padding, *rest)


@given(SHAPE, SIZE, SIZE, st.booleans())
def test_linear(rows: list[int], ins: int, outs: int, bias: bool) -> None:
    shift = empty(outs) if bias else None
    agrees(aten.linear.default, empty(*rows, ins), empty(outs, ins), shift)


@given(SIZE, SIZE, SIZE, SIZE)
def test_products(batch: int, rows: int, depth: int, columns: int) -> None:
    first, second = empty(rows, depth), empty(depth, columns)
    agrees(aten.mm.default, first, second)
    agrees(aten.matmul.default, first, second)
    agrees(aten.matmul.default, empty(2, batch, rows, depth), second)
    batched = empty(batch, rows, depth), empty(batch, depth, columns)
    agrees(aten.bmm.default, *batched)
    agrees(aten.matmul.default, *batched)


@given(SIZE, SIZE, SIZE, SIZE, SIZE, SIZE)
def test_attention(batch: int, heads: int, rows: int, keys: int, depth: int, width: int) -> None:
    query, key = empty(batch, heads, rows, depth), empty(batch, heads, keys, depth)
    value = empty(batch, heads, keys, width)
    agrees(aten.scaled_dot_product_attention.default, query, key, value)


def test_the_rest_multiplies_nothing() -> None:
    graph = Graph()
    x = graph.placeholder("x")
    assert macs(graph.call_function(aten.relu.default, (x,))) == macs(x) == 0
