"""Dense graphs whose convolutions read channels-last maps; what leaves them is as before."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sparsify.passes.channels_last import ChannelsLast
from torch import Tensor, nn

from sparsify import sparsify
from tests.graph_text import IMAGE, Lambda, expect, rewritten


def test_convolutions_read_one_ordered_map() -> None:
    dense = rewritten(lambda m, x: m.conv(x) + m.conv(x).relu(), ChannelsLast())["dense"]
    expect(
        dense.graph,
        """
        contiguous = contiguous(x)
        conv2d = conv2d(contiguous, conv_weight, conv_bias)
        conv2d_1 = conv2d(contiguous, conv_weight, conv_bias)
        relu = relu(conv2d_1)
        add = add.Tensor(conv2d, relu)
        contiguous_1 = contiguous(add)
        """,
    )


class Towers(nn.Module):
    """Maps, tokens, and an output that the model returns in another order."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.near = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.rows = nn.GroupNorm(2, 8), nn.Linear(8, 8)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        h = self.near(F.silu(self.norm(self.enter(image))))
        tokens = self.rows(h.flatten(2).mT).mT.unflatten(2, image.shape[2:])
        return self.near(tokens + h), tokens


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_kept_is_contiguous_as_after_a_commit(batch: int) -> None:
    """A compiled update is compiled again for other strides of what it reads."""
    torch.manual_seed(0)
    model, image = Towers().eval(), torch.randn(batch, 3, 16, 16)
    sparse = sparsify(model, backend="eager", dense_above=1.0)
    outputs, baseline = sparse.record(image)
    for got, want in zip(outputs, model(image), strict=True):
        torch.testing.assert_close(got, want)
        assert got.is_contiguous()
    mask = torch.zeros(16, 16, dtype=torch.bool)
    mask[3:6, 4:9] = True
    edited = torch.where(mask, image + 1, image)
    _, committed = sparse.update(baseline, edited, mask=mask, commit=True)
    for name, old in baseline.values.items():
        assert old.stride() == committed.values[name].stride()


@torch.library.custom_op("sparsify_tests::in_memory_order", mutates_args=())
def in_memory_order(x: Tensor) -> Tensor:
    """Reads memory from end to end, as a kernel on a pointer does."""
    return torch.as_strided(x, x.shape, torch.empty(x.shape).stride(), 0).cumsum(-1)


@in_memory_order.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty(x.shape)


def test_operators_of_others_read_contiguous_tensors() -> None:
    torch.manual_seed(0)
    model = Lambda(lambda m, x: in_memory_order(m.conv(m.conv(x)).contiguous()) + x).eval()
    image, mask = torch.randn(IMAGE), torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:6] = True
    edited = torch.where(mask, image + 1, image)
    for dense_above in (0.0, 1.0):
        sparse = sparsify(model, backend="eager", policy="exact", dense_above=dense_above)
        output, baseline = sparse.record(image)
        torch.testing.assert_close(output, model(image))
        update = sparse.update(baseline, edited, mask=mask)
        torch.testing.assert_close(update, model(edited))
