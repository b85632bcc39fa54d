"""Each rewrite rule: the graph before, the graph after. Each refusal says why."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sparsify.codegen.errors import VerifyError
from sparsify.passes.analyze import AnalyzeLayout
from sparsify.passes.canonicalize import Canonicalize
from sparsify.passes.facts import facts, note
from sparsify.passes.graphs import Graphs
from sparsify.passes.layout import Layout, Unmatched, broadcast
from sparsify.passes.verify import Inspect
from torch import Tensor
from torch.fx import Graph

from sparsify import sparsify
from tests.graph_text import IMAGE, captured, expect, rewritten, text
from tests.small import small_inputs, small_unet


def canonical(function: Callable[[Any, Tensor], Any]) -> Graph:
    return Canonicalize()(captured(function)).graph


def test_copies_and_casts_that_change_nothing_are_dropped() -> None:
    expect(
        canonical(lambda m, x: F.dropout(x.clone(), 0.1, False).float().relu()), "relu = relu(x)"
    )


def test_view_becomes_reshape() -> None:
    expect(canonical(lambda m, x: x.view(1, 4, 64)), "reshape_default = reshape(x)")


def test_same_padding_becomes_numbers() -> None:
    def same(m: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, m.conv.weight, padding="same")

    expect(canonical(same), "conv2d_default = conv2d(x, conv_weight)")

    def uneven(m: Any, x: Tensor) -> Tensor:
        return F.conv2d(x, m.conv.weight[:, :, :2, :2], padding="same")

    assert "pad_default = pad(x)" in text(canonical(uneven))


def test_group_norm_returns_its_statistics() -> None:
    expect(
        canonical(lambda m, x: m.norm(x)),
        """
        group_norm_1 = group_norm(x, norm_weight, norm_bias)
        getitem = getitem(group_norm_1)
        """,
    )


def test_instance_norm_is_a_group_norm() -> None:
    expect(
        canonical(lambda m, x: F.instance_norm(x)),
        """
        group_norm = group_norm(x)
        getitem = getitem(group_norm)
        """,
    )


def test_product_with_beta_zero_drops_the_sum() -> None:
    def product(m: Any, x: Tensor) -> Tensor:
        t = x.flatten(2)
        return torch.baddbmm(torch.empty(1, 4, 4), t, t.transpose(1, 2), beta=0, alpha=0.5)

    expect(
        canonical(product),
        """
        reshape_default = reshape(x)
        transpose = transpose.int(reshape_default)
        matmul_default = matmul(reshape_default, transpose)
        mul_tensor = mul.Tensor(matmul_default)
        """,
    )


def test_einsum_becomes_products() -> None:
    graph = canonical(lambda m, x: torch.einsum("bchw,bdhw->bcd", x, x))
    assert "einsum" not in text(graph)
    assert "bmm" in text(graph)


def test_convolution_is_packed() -> None:
    graphs = rewritten(lambda m, x: m.conv(x).relu())
    expect(
        graphs["update"].graph,
        """
        flatten_using_ints = flatten.using_ints(x_edited)
        take = take(flatten_using_ints, active_sites)
        same_sites = same_sites(getitem, active_sites)
        take_rows = take_rows(to_rows, getitem_1)
        gather_conv = gather_conv(take, take_rows, same_sites, _const_0, conv_bias)
        relu_default = relu(gather_conv)
        overlay_image = overlay_image(relu, relu_default, active_sites)
        """,
    )
    expect(
        graphs["plan"].graph,
        """
        active_sites = active_sites(mask)
        kernel_map = kernel_map(active_sites)
        getitem = getitem(kernel_map)
        getitem_1 = getitem(kernel_map)
        """,
    )
    expect(
        graphs["record"].graph,
        """
        conv2d = conv2d(x, conv_weight, conv_bias)
        relu = relu(conv2d)
        to_rows = to_rows(x)
        contiguous = contiguous(relu)
        contiguous_1 = contiguous(to_rows)
        """,
    )


def test_halo_is_recomputed_from_the_input_of_the_norm() -> None:
    """Only the norm's input and its statistics are remembered, not its output: that takes the
    place of a copy of the input after a commit."""
    graphs = rewritten(lambda m, x: m.conv(F.silu(m.norm(x))))
    results = zip(
        graphs["record"].outputs, graphs["record"].graph.output_node().args[0], strict=True
    )
    made = {name: node.all_input_nodes[0].name for name, node in results}
    kept = [made.get(graphs.copies.get(name, name)) for name in graphs.kept]
    assert kept == ["conv2d", "getitem_1", "getitem_2", "to_rows", "to_rows", "truth"]
    assert graphs.copies == {"baseline.4": "baseline.3"}
    assert text(graphs["update"].graph).count("= silu(") == 2


def test_conditions_are_computed_outside_the_update() -> None:
    """An embedding that no edit reaches is recorded, and made again only for other conditions."""
    sparse = sparsify(small_unet(), backend="eager", policy="exact", any_step=True)
    x, timestep, context = small_inputs()
    graphs = sparse.graphs(x, timestep, context)
    assert "cos(" not in text(graphs["update"].graph)
    assert text(graphs["conditions"].graph).count("cos(") == 1
    assert "conv2d" not in text(graphs["conditions"].graph)
    _, baseline = sparse.record(x, timestep, context)
    update = sparse.update(baseline, x, timestep + 1, -context, mask=torch.ones(16, 16).bool())
    dense = sparse(x, timestep + 1, -context)
    torch.testing.assert_close(update, dense, rtol=1e-4, atol=1e-5)


def test_zero_padding_is_folded_into_the_convolution() -> None:
    def padded(m: Any, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), m.conv.weight, stride=2)

    assert "gather_one" not in text(rewritten(padded)["update"].graph)


def test_exact_masks_grow() -> None:
    graphs = rewritten(lambda m, x: m.conv(m.conv(x)), policy="exact")
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[4, 4] = True
    values = graphs["plan"].run({"mask": mask})
    masks = [value for name, value in values.items() if name.startswith("mask.")]
    assert [int(m.sum()) for m in masks] == [1, 9, 25]


def test_small_grids_run_dense() -> None:
    def two_levels(m: Any, x: Tensor) -> Tensor:
        low = F.avg_pool2d(x, 4)
        return m.conv(x) + F.interpolate(m.conv(low), scale_factor=4.0)

    assert "avg_pool2d" in text(rewritten(two_levels, dense_share=0.2)["update"].graph)
    assert "gather_mean" in text(rewritten(two_levels, dense_share=0.0)["update"].graph)


def test_a_small_grid_gathers_what_a_nearest_resize_reads() -> None:
    """The edited map is not written out for it."""

    def resized(m: Any, x: Tensor) -> Tensor:
        low = F.interpolate(m.conv(x).relu(), size=(2, 2))
        return m.conv(x) + F.interpolate(m.conv(low), scale_factor=4.0)

    update = text(rewritten(resized, dense_share=0.2)["update"].graph)
    assert "overlay_rows" not in update
    assert "unpack = unpack(gather_one)" in update


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda m, x: x.logcumsumexp(1), "no rule for this operator"),
        (lambda m, x: x.roll(1), "mirrors or turns what is no picture"),
        (lambda m, x: x.softmax(-1), "runs along the sites"),
        (lambda m, x: x.flatten(2)[..., 1:], "takes a part of the grid"),
        (lambda m, x: x.flatten(2).chunk(2, 2)[0], "takes a part of the grid"),
        (lambda m, x: x.reshape(1, 4, 2, 2, 2, 8), "splits a spatial axis"),
        (lambda m, x: F.layer_norm(x, (8, 8)), "normalises over the sites"),
        (lambda m, x: x.mean(2), "reduces one of the two spatial axes"),
        (lambda m, x: F.conv2d(x, x[:, :, :3, :3]), "its weight depends on the edited input"),
        (lambda m, x: F.avg_pool2d(x, 3, ceil_mode=True), "ceil_mode"),
        (lambda m, x: F.pad(x, (1, 0, 0, 0, 1, 1)), "pads channels or batch"),
        (lambda m, x: x @ x, "sums over the sites"),
        (lambda m, x: x + x.transpose(2, 3), "operands disagree about the grid"),
    ],
)
def test_refusals_say_why(function: Callable[[Any, Tensor], Any], reason: str) -> None:
    module = AnalyzeLayout((Layout.image(IMAGE),))(Canonicalize()(captured(function)))
    reasons = [facts(node).reason for node in module.graph.nodes]
    assert any(reason in found for found in reasons), reasons


def test_layouts() -> None:
    image = Layout.image((2, 6, 4, 5))
    tokens = image.reshape((2, 2, 3, 20)).permute((0, 1, 3, 2))
    assert tokens.shape == (2, 2, 20, 3)
    assert (tokens.site_dim, tokens.merged, tokens.grid) == (2, True, (4, 5))
    assert image.permute((0, 2, 3, 1)).packed_shape() == [1, -1, 6]
    assert not image.permute((0, 2, 1, 3)).packable
    assert Layout.image((1, 4, 1, 5)).grid is None
    with pytest.raises(Unmatched, match="disagree"):
        broadcast([image, Layout.image((2, 6, 5, 4)).permute((0, 1, 3, 2))], (2, 6, 4, 5))


def test_verifier_catches_a_broken_stage() -> None:
    module = captured(lambda m, x: x.clone())
    with pytest.raises(VerifyError, match="is a copy"):
        Inspect()(Graphs(module, frozenset(["canonical"]), ("Canonicalize",)))
    for node in module.graph.nodes:
        note(node, edited=node.op == "call_function", layout=None)
    with pytest.raises(VerifyError, match="neither a layout nor a reason"):
        Inspect()(Graphs(module, frozenset(["layouts"]), ("AnalyzeLayout",)))
