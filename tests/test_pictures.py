"""Which inputs are taken for pictures: those that a network uses as such, whatever their rank."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import IPAdapterPlusImageProjection, MultiIPAdapterImageProjection
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen.errors import GridError
from torch import Tensor, nn

from sparsify import Baseline, SparseModule, sparsify
from tests.networks import LOCAL, MASKS, MaskRecipe, Recipe, recipes
from tests.picture_steps import Conv
from tests.rounding import assert_close, tolerance

SIZE = 12


def square(grid: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    mask = torch.zeros(grid, dtype=torch.bool)
    mask[2:5, 3:7] = True
    return mask


def recorded(
    model: nn.Module, *inputs: Any, policy: str = "exact", **options: Any
) -> tuple[SparseModule, Baseline]:
    sparse = sparsify(model.eval(), policy=policy, backend="eager", dense_share=0, **options)
    return sparse, sparse.record(*inputs)[1]


def grids(sparse: SparseModule) -> list[tuple[int, int] | None]:
    """Of the inputs."""
    assert sparse._engine.last is not None
    return [spot and spot.layout.grid for spot in sparse._engine.last[0].graphs.inputs]


# -- beside a picture ---------------------------------------------------------------------------


class TextBias(nn.Module):
    """Attention among as many tokens of text as the picture has rows, under a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.enter = nn.Linear(5, 8), nn.Conv2d(4, 8, 1)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        tokens = self.text(text)[:, None]
        style = F.scaled_dot_product_attention(tokens, tokens, tokens, bias).mean((1, 2))
        return self.enter(x) * (1 + style[:, :, None, None])


class RowBias(nn.Module):
    """Attention along the rows of a picture, the bias added by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, text: Tensor, bias: Tensor) -> Tensor:
        rows = self.enter(x).permute(0, 2, 3, 1)
        weights = (rows @ rows.mT / 3 + bias).softmax(-1)
        return self.leave((weights @ rows).permute(0, 3, 1, 2)) + text.mean()


@pytest.mark.parametrize("model", [TextBias, RowBias])
@torch.no_grad()
def test_a_bias_of_attention_is_no_picture(model: type[nn.Module]) -> None:
    """A new one holds whole for all that is computed."""
    torch.manual_seed(0)
    x, text = torch.randn(1, 4, SIZE, SIZE), torch.randn(1, SIZE, 5)
    bias, mask = 3 * torch.randn(1, 1, SIZE, SIZE), square()
    network = model().eval()
    sparse, baseline = recorded(network, x, text, bias)
    assert grids(sparse) == [(SIZE, SIZE), None, None]
    for new in (bias, 3 * torch.randn_like(bias)):
        edited = torch.where(mask, x + 1, x), text, new
        got = sparse.update(baseline, *edited, mask=mask)
        torch.testing.assert_close(got[..., mask], network(*edited)[..., mask])


def with_ip_adapter_plus() -> UNet2DConditionModel:
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    project = IPAdapterPlusImageProjection(16, 16, 16, 1, 8, 2, num_queries=4)
    unet.encoder_hid_proj = MultiIPAdapterImageProjection([project])
    unet.config.encoder_hid_dim_type = "ip_image_proj"
    processors = dict(unet.attn_processors)
    for name in processors:
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).to_q.in_features
            processors[name] = IPAdapterAttnProcessor2_0(width, 16, num_tokens=(4,))
    unet.set_attn_processor(processors)
    return unet


@torch.no_grad()
def test_embeddings_of_an_ip_adapter_are_no_pictures() -> None:
    """[N, images, tokens, channels]: a new reference arrives whole."""
    torch.manual_seed(0)
    unet = with_ip_adapter_plus().eval()
    x, time, words = torch.randn(1, 4, 16, 16), torch.tensor(3), torch.randn(1, 3, 16)
    old, new = ({"image_embeds": [torch.randn(1, 2, 16, 16)]} for _ in range(2))
    sparse = sparsify(unet, policy="exact", backend="eager")
    _, baseline = sparse.record(x, time, words, added_cond_kwargs=old)
    assert grids(sparse) == [(16, 16), None, None, None]
    edited, mask = torch.where(square((16, 16)), x + 1, x), square((16, 16))
    got = sparse.update(baseline, edited, time, words, added_cond_kwargs=new, mask=mask).sample
    want = unet(edited, time, words, added_cond_kwargs=new).sample
    torch.testing.assert_close(got[..., mask], want[..., mask], rtol=1e-4, atol=1e-5)


# -- other orders of axes -----------------------------------------------------------------------


class Permuted(nn.Module):
    """Convolutions of a picture that comes and goes as [N, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Conv2d(SIZE, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.leave(F.silu(self.enter(x.permute(0, 3, 1, 2))))
        return y.permute(0, 2, 3, 1)


class Perceptron(nn.Module):
    """Layers over the channels of every site, which are last."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.norm, self.leave = nn.Linear(SIZE, 8), nn.LayerNorm(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(F.gelu(self.norm(self.enter(x))))


@pytest.mark.parametrize("model", [Permuted, Perceptron])
@pytest.mark.parametrize("size", [SIZE, 10])
@torch.no_grad()
def test_channels_last_are_recognised(model: type[nn.Module], size: int) -> None:
    """Also where sizes do not tell."""
    torch.manual_seed(0)
    x, network, mask = torch.randn(1, SIZE, size, SIZE), model().eval(), square((SIZE, size))
    for options in ({}, {"grids": {"x": (SIZE, size)}}):
        sparse, baseline = recorded(network, x, **options)
        assert grids(sparse) == [(SIZE, size)]
        edited = torch.where(mask[..., None], x + 1, x)
        got, later = sparse.update(baseline, edited, mask=mask, commit=True)
        torch.testing.assert_close(got, network(edited))
        assert sparse.report().share("packed") == 1.0
        again = torch.where(mask.flip(0)[..., None], x - 1, edited)
        torch.testing.assert_close(sparse.update(later, again, mask=mask.flip(0)), network(again))


class Masked(nn.Module):
    """A picture, a hole in it as [N, H, W, 1], and labels of half its size."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.conv = nn.Embedding(5, 4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor, hole: Tensor, labels: Tensor) -> Tensor:
        names = self.names(labels)[:, 0].permute(0, 3, 1, 2)
        y = self.conv(x * (1 - hole.permute(0, 3, 1, 2)))
        return y + F.interpolate(names, scale_factor=2.0)


@torch.no_grad()
def test_what_is_joined_with_a_picture_is_one() -> None:
    torch.manual_seed(0)
    network, mask, half = Masked().eval(), square(), SIZE // 2
    inputs = (
        torch.randn(2, 4, SIZE, SIZE),
        torch.rand(2, SIZE, SIZE, 1).round(),
        torch.randint(0, 5, (2, 1, half, half)),
    )
    sparse, baseline = recorded(network, *inputs)
    assert grids(sparse) == [(SIZE, SIZE), (SIZE, SIZE), (half, half)]
    inside = F.max_pool2d(mask[None].float(), 2)[0] > 0
    edited = (
        torch.where(mask, inputs[0] + 1, inputs[0]),
        torch.where(mask[..., None], 1 - inputs[1], inputs[1]),
        torch.where(inside, (inputs[2] + 1) % 5, inputs[2]),
    )
    torch.testing.assert_close(sparse.update(baseline, *edited, mask=mask), network(*edited))


# -- pictures apart -----------------------------------------------------------------------------


class Reference(nn.Module):
    """The tokens of a picture attend to those of another."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.look = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 2, 2)

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        y = self.enter(x)
        query, keys = y.flatten(2).mT[:, None], self.look(other).flatten(2).mT[:, None]
        found = F.scaled_dot_product_attention(query, keys, keys)[:, 0]
        return y + found.mT.reshape(y.shape)


@torch.no_grad()
def test_pictures_apart_are_asked_for() -> None:
    torch.manual_seed(0)
    x, other = torch.randn(1, 4, SIZE, SIZE), torch.randn(1, 4, SIZE, SIZE)
    network, mask = Reference().eval(), square()
    with pytest.raises(GridError, match=r"x \[1, 4, .*and other \[.*grids={'x': .*'other': None}"):
        recorded(network, x, other)
    sparse, baseline = recorded(network, x, other, grids={"other": None})
    assert grids(sparse) == [(SIZE, SIZE), None]
    edited = torch.where(mask, x + 1, x), torch.randn_like(other)
    got = sparse.update(baseline, *edited, mask=mask)
    torch.testing.assert_close(got[..., mask], network(*edited)[..., mask])
    sparse, baseline = recorded(
        network, x, other, grids=dict.fromkeys(("x", "other"), (SIZE, SIZE))
    )
    assert grids(sparse) == [(SIZE, SIZE)] * 2
    edited = torch.where(mask, x + 1, x), torch.where(mask, other - 1, other)
    got = sparse.update(baseline, *edited, mask=mask)
    torch.testing.assert_close(got, network(*edited), rtol=1e-4, atol=1e-5)


class Spectrum(nn.Module):
    """What nothing is known of."""

    def forward(self, x: Tensor, *others: Tensor) -> Tensor:
        return sum((torch.fft.fft2(y).abs().mean((2, 3)) for y in others), x.cumsum(2).mean((2, 3)))


@torch.no_grad()
def test_without_any_use_one_is_taken_and_two_are_asked_for() -> None:
    x, mask = torch.randn(1, 4, SIZE, SIZE), square()
    sparse, baseline = recorded(Spectrum(), x)
    edited = torch.where(mask, x + 1, x)
    torch.testing.assert_close(sparse.update(baseline, edited, mask=mask), Spectrum()(edited))
    with pytest.raises(GridError, match="may be pictures"):
        recorded(Spectrum(), x, x)


# -- lines --------------------------------------------------------------------------------------


class Line(nn.Module):
    """Tokens [N, L, 1] with a norm over all of them, or a picture of one row or column."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(1, 8), nn.Linear(8, 1)
        self.norm, self.mix = nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.enter(x.reshape(len(x), -1, 1))
        tokens = F.gelu(self.norm(tokens.mT).mT)
        tokens = tokens + F.scaled_dot_product_attention(*[tokens[:, None]] * 3)[:, 0]
        if x.dim() == 4:
            tokens = self.mix(tokens.mT.reshape(len(x), 8, *x.shape[2:])).flatten(2).mT
        return self.leave(tokens).reshape(x.shape) + x


@pytest.mark.parametrize("policy", ["exact", "fixed"])
@pytest.mark.parametrize("grid", [(32, 1), (1, 32)])
@pytest.mark.parametrize("shape", ["tokens", "picture"])
@torch.no_grad()
def test_grids_of_one_row_or_column(policy: str, grid: tuple[int, int], shape: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 32, 1) if shape == "tokens" else torch.randn(2, 1, *grid)
    network, mask = Line().eval(), torch.zeros(grid, dtype=torch.bool)
    mask.view(-1)[5:9] = True
    sparse, baseline = recorded(network, x, policy=policy, grids={"x": grid}, dilate=1)
    assert grids(sparse) == [grid]
    edited = torch.where(mask.view(-1, 1) if x.dim() == 3 else mask, x + 1, x)
    got = sparse.update(baseline, edited, mask=mask)
    if policy == "exact":
        torch.testing.assert_close(got, network(edited))
    else:
        torch.testing.assert_close(sparse.update(baseline, x, mask=mask), network(x))
        full = sparse.update(baseline, edited, mask=torch.ones_like(mask))
        torch.testing.assert_close(full, network(edited))


# -- a law --------------------------------------------------------------------------------------


class Beside(nn.Module):
    """A drawn network, and one more input of the picture's size."""

    def __init__(self, recipe: Recipe, kind: str) -> None:
        super().__init__()
        self.kind, self.network = kind, recipe.build()

    def forward(self, image: Tensor, condition: Tensor, context: Tensor, other: Tensor) -> Any:
        if self.kind == "joined":
            image = image * (1 + other.tanh())
        elif self.kind == "labels":
            image = torch.where(other > 0, image, -image)
        else:
            ones = other.new_ones(1, 1, max(other.shape), 1)
            height, width = other.shape[-2:]
            keys = ones[:, :, :width].cumsum(2)
            mixed = F.scaled_dot_product_attention(ones[:, :, :height], keys, keys, other)
            condition = condition + mixed.mean() / width
        return self.network(image, condition, context)


@settings(max_examples=10)
@given(recipes(LOCAL, 2), MASKS, st.sampled_from(["joined", "labels", "bias"]))
@torch.no_grad()
def test_inputs_of_the_size_of_a_picture(recipe: Recipe, mask: MaskRecipe, kind: str) -> None:
    enter = Conv(4, (1, 1), (1, 1), (1, 1), 1, 0, "zeros", (0, 0, 0, 0), True)
    recipe = replace(recipe, steps=(enter, *recipe.steps))
    model, active = Beside(recipe, kind), mask.build(recipe.grid)
    before, after = recipe.inputs(), recipe.inputs(1)
    others = [image[:1, :1] for image, *_ in (before, after)]
    if kind == "labels":
        others = [(other > 0).int() for other in others]
    sparse, baseline = recorded(model, *before, others[0])
    assert grids(sparse) == [recipe.grid, None, None, None if kind == "bias" else recipe.grid]
    inputs = (torch.where(active, after[0], before[0]), *before[1:])
    other = others[0] if kind == "bias" else torch.where(active, others[1], others[0])
    allowed = 3 * tolerance(recipe, before, inputs)  # the other input adds up to two operators
    got = sparse.update(baseline, *inputs, other, mask=active)
    assert_close(got, model(*inputs, other), allowed)


class Flipped(nn.Module):
    """Cuts an axis that is a column of [N, C, H, W], and the channel of [N, H, W, C]."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.flip(1).cumsum(3), x.shape[-1:])


@torch.no_grad()
def test_few_rows_of_many_channels_are_no_picture() -> None:
    sparse, _ = recorded(Flipped(), torch.randn(1, 3, 8, 8))
    assert grids(sparse) == [(8, 8)]
