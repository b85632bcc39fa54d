"""Canonical forms compute what the captured graph did, and are forms that pack."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sparsify.passes.canonicalize import Canonicalize
from sparsify.passes.capture import capture
from torch import Tensor, nn
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from sparsify import CaptureError, sparsify

Function = Callable[[Tensor], Tensor]


class Of(nn.Module):
    """A function of one image as a model."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def canonical_equals(function: Function, x: Tensor) -> str:
    """Checks the canonical graph on new values; returns its operators."""
    module = Canonicalize()(capture(Of(function).eval(), (x,), {}).module)
    new = torch.randn_like(x)
    torch.testing.assert_close(module(new)[0], function(new))
    return " ".join(str(node.target) for node in module.graph.nodes if node.op == "call_function")


def patchified(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(n, -1, 4 * c)


def unpatchified(tokens: Tensor) -> Tensor:
    n, length, width = tokens.shape
    side = int(length**0.5)
    parts = tokens.reshape(n, side, side, 2, 2, width // 4).permute(0, 5, 1, 3, 2, 4)
    return parts.reshape(n, width // 4, 2 * side, 2 * side)


def written(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1:3] = x[:, 1:3].sin()
    return y


def rotated_in_place(x: Tensor) -> Tensor:
    """As Wan turns its queries."""
    y = torch.empty_like(x)
    y[..., 0::2] = x[..., 0::2].cos() - x[..., 1::2]
    y[..., 1::2] = x[..., 0::2] + x[..., 1::2].sin()
    return y


def masked_flexibly(x: Tensor) -> Tensor:
    """Each token sees those before it, and itself."""
    tokens = x.flatten(2).transpose(1, 2)[:, None].repeat(1, 1, 1, 4)
    length = tokens.shape[2]
    allowed = create_block_mask(lambda b, h, q, k: q >= k, None, None, length, length, "cpu")
    return flex_attention(tokens, tokens, tokens, block_mask=allowed)


def indexed(x: Tensor) -> Tensor:
    """Writes and sums at positions that are known."""
    y = torch.zeros_like(x)
    y[:, torch.arange(1, 4)] = x[:, :3]
    y[torch.zeros(1, dtype=torch.bool)] = 7.0
    rows = torch.arange(4)[None, :, None, None].expand(1, 4, 8, 8)
    return y.scatter_add(1, rows, x.sin())


def frames_patchified(x: Tensor) -> Tensor:
    """[1, C, H, W], its channels as frames, -> [tokens, values], as Z-Image does."""
    c, h, w = x.shape[1:]
    parts = x[0].view(1, c, 1, h // 2, 2, w // 2, 2).permute(1, 3, 5, 2, 4, 6, 0)
    return parts.reshape(c * h * w // 4, 4)


def channels_last_patchified(x: Tensor) -> Tensor:
    """As Kandinsky 5 does, and back."""
    y = x.permute(0, 2, 3, 1)
    n, h, w, c = y.shape
    y = y.view(n, 1, h // 2, 2, w // 2, 2, c).permute(0, 1, 2, 4, 3, 5, 6)
    y = y.reshape(n, 1, h // 2, w // 2, 4 * c).sin()
    y = y.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5)
    return y.reshape(n, h, w, c).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("function", "gone"),
    [
        (lambda x: x + torch.zeros_like(x) + x.new_ones(1, 4, 1, 1), "_like new_"),
        (lambda x: x.type_as(x.double()).type_as(x) * 2, "type_as"),
        (lambda x: x.repeat(1, 2, 1, 1) + x.repeat_interleave(2, 1), "repeat"),
        (lambda x: x.repeat(2, 1, 1, 1, 1), "repeat"),
        (lambda x: torch.concat([x, x], 1), "concat"),
        (lambda x: torch.stack([x, x], 2), "stack"),
        (lambda x: sum(x.chunk(3, 1)[1:]), "chunk getitem"),
        (lambda x: sum(t[..., None] for t in x.split([1, 3], 1)[:1]), "split getitem"),
        (lambda x: x.unbind(1)[2], "unbind getitem"),
        (lambda x: x.narrow(1, 1, 2), "narrow"),
        (lambda x: x.permute(0, 2, 3, 1).transpose(1, 2).permute(0, 3, 1, 2), "transpose"),
        (lambda x: x / x.norm(dim=1, keepdim=True), "vector_norm"),
        (lambda x: F.normalize(x, dim=1), "vector_norm"),
        (written, "scatter copy"),
        (patchified, "split"),
        (lambda x: unpatchified(patchified(x)), "split"),
        (rotated_in_place, "scatter copy empty"),
        (lambda x: x[:, torch.arange(1, 3)], "index"),
        (lambda x: x.index_put((torch.arange(1).long(), torch.arange(1)), x[0, 0]), "none"),
        (indexed, "index_put scatter"),
        (masked_flexibly, "flex"),
        (lambda x: x.mT.contiguous().as_strided((4, 1, 8, 8), (64, 64, 1, 8)).sin(), "aten.as_str"),
        (lambda x: x.as_strided((2, 9), (5, 3), 7), "aten.as_str"),
        (lambda x: x[:, 1:].clone().as_strided((2, 9), (5, 3)), "aten.as_str"),
        (lambda x: x.as_strided((9, 8), (8, 1)).as_strided((9, 2), (8, 3)), "aten.as_str"),
        (lambda x: (x.mT.view(torch.int32) & 0xFFFF).float(), "none"),
        (frames_patchified, "split view"),
        (channels_last_patchified, "split view"),
        (lambda x: F.interpolate(x, size=(8, 8)) + F.interpolate(x, scale_factor=1.0), "nearest"),
    ],
)
def test_forms(function: Function, gone: str) -> None:
    operators = canonical_equals(function, torch.randn(1, 4, 8, 8))
    assert not any(word in operators for word in gone.split())


def test_memory_around_a_value_is_not_captured() -> None:
    with pytest.raises(CaptureError, match=r"as_strided.*memory around.*reshape"):
        canonical_equals(lambda x: x[:, :2].as_strided((2, 2), (1, 40)), torch.randn(1, 3, 4, 4))


def test_memory_of_overlapping_rows_is_not_captured() -> None:
    """Each reads the strides that its operand was captured with."""
    with pytest.raises(CaptureError, match=r"as_strided.*memory around"):
        canonical_equals(
            lambda x: x.as_strided((3, 4), (2, 1)).as_strided((2, 2), (8, 1)),
            torch.randn(1, 4, 8, 8),
        )


def test_writes_through_strides_are_not_captured() -> None:
    def doubled(x: Tensor) -> Tensor:
        y = x.clone()
        y.as_strided((2, 2), (1, 8)).mul_(2)
        return y

    with pytest.raises(CaptureError, match="writes through as_strided"):
        canonical_equals(doubled, torch.randn(1, 4, 8, 8))


@pytest.mark.parametrize(
    "function",
    [
        lambda x: unpatchified((patchified(x) @ torch.ones(12, 12)).sin()),
        lambda x: frames_patchified(x).sin(),
        channels_last_patchified,
    ],
)
def test_patches_lie_on_the_coarse_grid(function: Function) -> None:
    model = Of(function).eval()
    sparse = sparsify(model, backend="eager", dense_share=0.0)
    sparse.graphs(torch.randn(1, 3, 8, 8))
    states = {node.operator: node.state for node in sparse.report()}
    assert states["aten.sin"] == "packed"
    assert not sparse.report().fallbacks


@settings(max_examples=settings.default.max_examples // 3)
@given(
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 2)] * 3),
    padding=st.tuples(*[st.integers(0, 2)] * 3),
    dilation=st.tuples(*[st.integers(1, 2)] * 3),
    frames=st.integers(1, 4),
    bias=st.booleans(),
)
def test_conv3d(
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    dilation: tuple[int, int, int],
    frames: int,
    bias: bool,
) -> None:
    size = (frames, 6, 5)
    for n, p, d, k in zip(size, padding, dilation, kernel, strict=True):
        assume(n + 2 * p >= d * (k - 1) + 1)
    weight, shift = torch.randn(3, 2, *kernel), torch.randn(3) if bias else None

    def convolved(x: Tensor) -> Tensor:
        return F.conv3d(x, weight, shift, stride, padding, dilation)

    operators = canonical_equals(convolved, torch.randn(2, 2, *size))
    assert "conv3d" not in operators


UNEVEN, OVER_TIME = torch.rand(3, 1, 3, 1, 2), torch.rand(2, 3, 3, 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.pad(x, (1, 1, 1, 1, 2, 0)),
        lambda x: F.pad(x, (1, 2, 0, 1, 2, 1), mode="replicate"),
        lambda x: F.pad(x, (1, 1, 1, 1, 1, 1), mode="reflect"),
        lambda x: F.pad(x, (1, 1, 1, 1, 1, 3), mode="circular"),
        lambda x: F.pad(x, (0, 0, 0, 0, 2, 0)),
        lambda x: F.pad(x, (0, 0, 0, 0, 0, 0), mode="replicate").sin(),
        lambda x: F.pad(x, (1, 1), value=3.0),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: F.interpolate(x, scale_factor=(1, 2, 2)),
        lambda x: F.interpolate(x, size=(8, 6, 12), mode="nearest-exact"),
        lambda x: F.interpolate(x[:, :, 0], scale_factor=2, mode="nearest-exact"),
        lambda x: F.avg_pool3d(x, (3, 2, 2), (1, 2, 2), (0, 1, 1)),
        lambda x: F.avg_pool3d(x, (2, 1, 1)),
        lambda x: F.max_pool3d(x, (2, 3, 3), 1, (0, 1, 1), (1, 1, 2)),
        lambda x: F.conv3d(x, torch.ones(6, 1, 2, 3, 3), groups=3),
        lambda x: F.conv_transpose3d(x, torch.ones(3, 2, 2, 3, 3), stride=2, padding=(0, 1, 1)),
        lambda x: F.conv_transpose3d(x, UNEVEN, None, (2, 1, 2), (1, 0, 0), (1, 0, 0), 3),
        lambda x: F.interpolate(x, scale_factor=(2, 1, 1), mode="trilinear"),
        lambda x: F.interpolate(x, size=(3, 9, 12), mode="trilinear", align_corners=True),
        lambda x: F.conv2d(x.flatten(3), OVER_TIME, padding=(1, 0)),
        lambda x: F.conv1d(x.permute(0, 3, 4, 1, 2).flatten(0, 2), torch.ones(2, 3, 3)).sin(),
        lambda x: F.conv1d(x.flatten(3).flatten(1, 2), torch.ones(5, 12, 1), torch.ones(5)).sin(),
        lambda x: torch.where(x > 0, x, 99.0),
        lambda x: F.avg_pool1d(x.permute(0, 3, 4, 1, 2).flatten(0, 2), 2).sin(),
    ],
)
def test_frames(function: Function) -> None:
    """Every operator on frames has a form that packs."""
    video = torch.randn(2, 3, 4, 6, 6)
    canonical_equals(function, video)
    sparse = sparsify(Of(function).eval(), backend="eager", dense_share=0.0, policy="exact")
    _, baseline = sparse.record(video)
    mask = torch.zeros(6, 6, dtype=torch.bool)
    mask[1, 2:4] = True
    edited = torch.where(mask, torch.randn_like(video), video)
    torch.testing.assert_close(sparse.update(baseline, edited, mask=mask), function(edited))
    assert not sparse.report().fallbacks


def test_pads_and_strides_of_channels_last() -> None:
    def padded(x: Tensor) -> Tensor:
        y = F.pad(x.permute(0, 2, 3, 1)[..., None], (0, 0, 0, 0, 2, 1, 1, 0)).sin()
        return y[:, 1::2, ::3].cos()

    x = torch.randn(2, 3, 6, 5)
    sparse = sparsify(Of(padded).eval(), backend="eager", dense_share=0.0, policy="exact")
    _, baseline = sparse.record(x)
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[0, 3:] = True
    edited = torch.where(mask, torch.randn_like(x), x)
    torch.testing.assert_close(sparse.update(baseline, edited, mask=mask), padded(edited))
    assert not sparse.report().fallbacks


class Clip(nn.Module):
    """Two convolutions over frames with attention over time between."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv3d(3, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.qkv = nn.Linear(8, 24)
        self.leave = nn.Conv3d(8, 3, (3, 1, 1), padding=(1, 0, 0))

    def forward(self, video: Tensor) -> Tensor:
        x = F.silu(self.norm(self.enter(video)))
        tokens = x.permute(0, 3, 4, 2, 1).flatten(0, 2)  # [N*H*W, T, C]
        y = F.scaled_dot_product_attention(*self.qkv(tokens).chunk(3, -1))
        n, c, t, h, w = x.shape
        return self.leave(x + y.reshape(n, h, w, t, c).permute(0, 4, 3, 1, 2))


@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_videos_are_packed(batch: int) -> None:
    """One mask for all frames."""
    torch.manual_seed(0)
    model, video = Clip().eval(), torch.randn(batch, 3, 4, 10, 12)
    mask = torch.zeros(10, 12, dtype=torch.bool)
    mask[3:5, 4:7] = True
    edited = torch.where(mask, torch.randn_like(video), video)
    sparse = sparsify(model, policy="exact", backend="eager")
    _, baseline = sparse.record(video)
    got = sparse.update(baseline, edited, mask=mask)
    torch.testing.assert_close(got, model(edited), rtol=1e-4, atol=1e-5)
    sparse = sparsify(model, backend="eager", dense_share=0.0)
    output, baseline = sparse.record(video)
    unchanged = sparse.update(baseline, video, mask=mask)
    torch.testing.assert_close(unchanged, output, rtol=1e-5, atol=1e-5)
    assert sparse.report().share("packed") == 1.0


def two_of_one_grid(x: Tensor) -> tuple[Tensor, ...]:
    """A picture and its reference in one stream, between words."""
    tokens, words = x.flatten(2).transpose(1, 2), torch.ones(1, 3, 4)
    stream = torch.cat([words, tokens, tokens.sin(), words], 1)
    stream = stream + F.scaled_dot_product_attention(stream, stream, stream)
    sites = tokens.shape[1]
    parts = stream[:, 2 : 3 + sites], stream[:, 3 + sites : -1], stream[:, 3 : 3 + 2 * sites]
    return *(part.cos() for part in parts), stream[:, -2:]


@pytest.mark.parametrize("policy", ["exact", "fixed"])
@torch.no_grad()
def test_pictures_joined_along_their_sites(policy: str) -> None:
    x = torch.randn(1, 4, 6, 5)
    sparse = sparsify(Of(two_of_one_grid).eval(), backend="eager", dense_share=0.0, policy=policy)
    output, baseline = sparse.record(x)
    mask = torch.zeros(6, 5, dtype=torch.bool)
    mask[2, 1:3] = True
    torch.testing.assert_close(sparse.update(baseline, x, mask=mask), output)
    assert not sparse.report().fallbacks
    edited = torch.where(mask, torch.randn_like(x), x)
    got, want = sparse.update(baseline, edited, mask=mask), two_of_one_grid(edited)
    if policy == "exact":
        torch.testing.assert_close(got, want)
    else:
        torch.testing.assert_close(got[3], want[3])  # the words attend to everything


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [lambda x: F.group_norm(x, 2), F.instance_norm])
def test_values_of_group_norms(norm: Function, dtype: torch.dtype) -> None:
    """They are said, not computed."""
    x = torch.randn(2, 4, 6, 5, dtype=dtype)
    module = Canonicalize()(capture(Of(norm).eval(), (x,), {}).module)
    whole = next(node for node in module.graph.nodes if "group_norm" in node.name)
    ran = torch.fx.Interpreter(module, garbage_collect_values=False)
    ran.run(x)
    for said, value in zip(whole.meta["val"], ran.env[whole], strict=True):
        assert (said.shape, said.dtype, said.device) == (value.shape, value.dtype, value.device)


def test_group_norm_without_a_grid() -> None:
    canonical_equals(lambda x: F.group_norm(x.mean((2, 3)), 2), torch.randn(3, 4, 2, 2))


class StridedNorm(nn.Module):
    """The statistics of every other pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.GroupNorm(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).relu()[:, :, 1::2, ::2]).tanh()


@torch.no_grad()
def test_norm_of_a_strided_slice() -> None:
    """The recorded values at active sites are those of the recorded picture."""
    model, x = StridedNorm().eval(), torch.randn(1, 3, 8, 10)
    mask = torch.zeros(8, 10, dtype=torch.bool)
    mask[2:5, 3:6] = True
    edited = torch.where(mask, 3 + torch.randn_like(x), x)
    sparse = sparsify(model, backend="eager", dense_share=0.0, dilate=1)
    _, baseline = sparse.record(x)
    got = sparse.update(baseline, edited, mask=mask)
    torch.testing.assert_close(got[..., 1:3, 1:3], model(edited)[..., 1:3, 1:3])
