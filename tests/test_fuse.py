"""What the fuse pass swaps in, and why it leaves the rest. The laws run its graphs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from sparsify.passes.fuse import Fuse, Fused
from sparsify.passes.pack import Pack
from torch import Tensor

from sparsify import sparsify
from tests.gpu_free.as_on_cuda import plain_weights
from tests.graph_text import IMAGE, Lambda, expect, rewritten


@pytest.fixture(autouse=True)
def weights_as_on_cuda() -> Iterator[None]:
    with plain_weights():
        yield


def fused(function: Callable[[Any, Tensor], Any]) -> tuple[Any, list[Fused]]:
    graphs = rewritten(function, Fuse(), shapes=True)
    return graphs["update"].graph, graphs["update"].module.meta["fused"]


def test_halo_is_read_where_it_stands() -> None:
    graph, found = fused(lambda m, x: m.conv(x).relu())
    expect(
        graph,
        """
        flatten_using_ints = flatten.using_ints(x_edited)
        take = take(flatten_using_ints, active_sites)
        same_sites = same_sites(getitem, active_sites)
        transpose_int = transpose.int(to_rows)
        gather_conv_1 = gather_conv(take, transpose_int, getitem_1, same_sites, _const_0, conv_bias)
        overlay_image = overlay_image(relu, gather_conv_1, active_sites)
        """,
    )
    assert found == [
        Fused("gather_conv", "gather_conv", ("halo", "activation"), "then overlay_image")
    ]


def upsample(m: Any, x: Tensor) -> Tensor:
    return m.conv(F.interpolate(m.conv(x) + x, scale_factor=2.0))


def test_upsampling_is_part_of_the_kernel_map() -> None:
    graph, found = fused(upsample)
    assert [f.parts for f in found] == [("halo", "residual"), ("halo", "resize")]
    names = {getattr(node.target, "__name__", "") for node in graph.nodes}
    assert "through" in names and "gather_one" not in names


@pytest.mark.parametrize("function", [upsample])
def test_fused_update_is_the_update(function: Callable[[Any, Tensor], Any]) -> None:
    model, mask = Lambda(function).eval(), torch.rand(8, 8) < 0.2
    before, after = torch.randn(2, *IMAGE)
    results = []
    for kernels in (False, True):
        with patch("sparsify.program.has_kernels", lambda device, on=kernels: on):
            sparse = sparsify(model, backend="eager", dilate=0, dense_share=0.0)
            _, baseline = sparse.record(before)
            results.append(sparse.update(baseline, after, mask=mask))
    torch.testing.assert_close(*results)
    assert not results[0].equal(baseline.outputs[0])


def test_epilogue() -> None:
    """conv + shift, activation, * scale, + residual, in this order."""

    def block(m: Any, x: Tensor) -> Tensor:
        h = F.leaky_relu(m.conv(x) + m.norm.weight[None, :, None, None], 0.1)
        return x + h / 4

    graph, found = fused(block)
    assert [f.parts for f in found] == [("halo", "shift", "activation", "scale", "residual")]
    node = next(n for n in graph.nodes if n.name.startswith("gather_conv"))
    how = {key: value for key, value in node.kwargs.items() if isinstance(value, (str, float))}
    wanted = {"activation": "leaky_relu", "slope": 0.1, "scale": 0.25}
    assert how == {**wanted, "format": "plain"}
    assert {"shift", "residual"} <= set(node.kwargs)


@pytest.mark.parametrize(
    ("function", "parts", "left"),
    [
        (lambda m, x: m.conv(x).tanh(), (), "then tanh"),
        (lambda m, x: (h := m.conv(x)) * h.sigmoid(), (), "its result is read by 2 nodes"),
        (lambda m, x: m.conv(x).relu() + 1, ("activation",), "then add"),
        (lambda m, x: (m.conv(x) * 2).relu(), ("scale",), "then relu"),
        (lambda m, x: torch.add(x, m.conv(x), alpha=2), (), "then add"),
        (lambda m, x: m.conv(x) + m.conv.weight[:1, :, :1, :1].double(), (), "then add"),
        (lambda m, x: m.conv(x) + x[:, :1], (), "then add"),
    ],
)
def test_near_misses_say_why(
    function: Callable[[Any, Tensor], Any], parts: tuple[str, ...], left: str
) -> None:
    (found,) = fused(function)[1]
    assert found.parts == ("halo", *parts)
    assert found.left.startswith(left)


def attend(m: Any, x: Tensor, keys: Any = None, **options: Any) -> Tensor:
    heads = x.reshape(1, 2, 2, 64).transpose(2, 3)
    y = F.scaled_dot_product_attention(heads, heads if keys is None else keys, heads, **options)
    return y.transpose(2, 3).reshape(x.shape)


def attend_and_pool(m: Any, x: Tensor) -> Tensor:
    heads = x.reshape(1, 2, 2, 64).transpose(2, 3)
    y = F.scaled_dot_product_attention(heads, heads, heads) + heads.amax(2, True)
    return y.transpose(2, 3).reshape(x.shape)


def test_attention_reads_the_overlay_where_it_stands() -> None:
    graph, found = fused(attend)
    assert [(f.operator, f.left) for f in found] == [("overlay_attention", "")]
    (node,) = (n for n in graph.nodes if n.name.startswith("overlay_attention"))
    query, base_key, base_value, key, value, bias, scale = node.args
    assert (base_key, key) == (base_value, value) and key is query
    assert bias.target.__name__ == "key_bias" and bias.args[1] == 64
    assert scale == pytest.approx(2**-0.5)


def test_attentions_over_the_same_sites_share_their_bias() -> None:
    graph, found = fused(lambda m, x: attend(m, attend(m, x)))
    assert len(found) == 2
    assert sum(n.name.startswith("key_bias") for n in graph.nodes) == 1


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: attend(m, x, keys=torch.ones(1, 2, 64, 2)), "only the keys or only"),
        (lambda m, x: attend(m, x, attn_mask=torch.ones(64, 64)), "it has attn_mask"),
        (attend_and_pool, "needed whole elsewhere"),
    ],
)
def test_attention_near_misses_say_why(function: Callable[[Any, Tensor], Any], reason: str) -> None:
    found = [f for f in fused(function)[1] if f.operator == "attention"]
    assert len(found) == 1 and reason in found[0].left


def test_statistics_read_the_baseline_where_it_stands() -> None:
    with patch("tests.graph_text.Pack", lambda: Pack(padded=True)):
        graph, found = fused(lambda m, x: m.norm(x.sigmoid()) + m.norm(m.conv(x)))
    statistics = [f for f in found if f.operator == "group_statistics"]
    assert [f.parts for f in statistics] == [(), ("baseline",)]
    assert "updated_statistics" not in {getattr(n.target, "__name__", "") for n in graph.nodes}
