"""Rows of remembered values are read through tables of their own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sparsify.passes.graphs import Row
from sparsify.passes.rows import ReadRows
from torch import Tensor
from torch._dynamo.utils import counters

from sparsify import sparsify
from tests.graph_text import expect, rewritten, text
from tests.small import small_inputs, small_unet
from tests.test_commits import Film

CORNER = torch.zeros(8, 8, dtype=torch.bool)
CORNER[1:4, 2:5] = True


def test_a_halo_is_read_by_its_rows() -> None:
    """What no table but this one depends on needs no sites beside it."""
    graphs = rewritten(lambda m, x: m.conv(x).relu(), ReadRows())
    expect(
        graphs["update"].graph,
        """
        flatten_using_ints = flatten.using_ints(x_edited)
        take = take(flatten_using_ints, active_sites)
        same_sites = same_sites(getitem, active_sites)
        take_rows = take_rows(to_rows, row_0)
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
        detach_default = detach(getitem_1)
        """,
    )
    halo = graphs.rows["row.0"].table
    assert graphs.rows == {"row.0": Row(halo, (halo,))}
    assert halo not in graphs["update"].inputs and graphs["plan"].outputs[-1] == "row.0"
    (value,) = graphs.reads
    assert (graphs.dynamic[halo], graphs.dynamic["row.0"], graphs.dynamic[value]) == (0, 0, 1)


def test_rows_at_active_sites_are_as_many_as_these() -> None:
    graphs = rewritten(lambda m, x: m.conv(F.silu(m.norm(x))), ReadRows())
    (kept,) = {row.kept for row in graphs.rows.values()}
    assert len(kept) == len(graphs.rows) == 2
    code = text(graphs["update"].graph)
    assert "same_sites_1 = same_sites(row_0, active_sites)" in code
    assert "take_rows = take_rows(to_rows, same_sites_1)" in code


def test_values_that_something_reads_whole_have_no_rows() -> None:
    def attention(m: object, x: Tensor) -> Tensor:
        rows = x.flatten(2).mT[:, None]
        y = F.scaled_dot_product_attention(rows, rows, rows)
        return y[:, 0].mT.unflatten(2, (8, 8))

    graphs = rewritten(attention, ReadRows())
    assert not graphs.reads and not graphs.rows and set(graphs.dynamic.values()) == {0}


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@torch.no_grad()
def test_one_update_serves_whole_and_restricted_baselines(backend: str) -> None:
    """Compiled once, of recorded and of committed baselines."""
    torch._dynamo.reset()
    whole = backend == "eager"  # half of it takes half of the time to compile
    model = small_unet() if whole else Film(film=False).eval()
    sparse = sparsify(model, backend=backend, dilate=0, dense_share=0.0, dense_above=1.0)
    image, *others = small_inputs() if whole else (torch.randn(1, 8, 16, 16), torch.ones(1, 4))
    mask = F.pad(CORNER, (0, image.shape[-1] - 8, 0, image.shape[-2] - 8))
    edited = torch.where(mask, image + 1, image), *others
    _, baseline = sparse.record(image, *others)
    want, committed = sparse.update(baseline, *edited, mask=mask, commit=True)
    for whole in (baseline, committed):
        before = counters["stats"]["unique_graphs"]
        got = [sparse.update(b, *edited, mask=mask) for b in (whole, sparse.restrict(whole, mask))]
        torch.testing.assert_close(got[0], want, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[1], got[0], rtol=1e-6, atol=1e-6)
        made = counters["stats"]["unique_graphs"] - before
        assert made == (backend == "inductor")
