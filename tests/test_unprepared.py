"""Whatever people write has to be right, packed or not: networks without any preparation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sparsify.codegen.errors import CaptureError, MaskError
from torch import Tensor, nn

from sparsify import sparsify
from tests.agreement import ALLOWED, Example, above, assert_right, exact_errors, fixed_errors, masks
from tests.nets.base import C, conv
from tests.nets.inputs import OTHERS, other
from tests.nets.pictures import PICTURES, pictures
from tests.networks import MASKS, MaskRecipe

NAMES = list(PICTURES)
SIX = [NAMES[i : i + 6] for i in range(0, len(NAMES), 6)]
EDITS = {
    **{name: (name, ("x",)) for name in OTHERS},
    "inpainting, both": ("inpainting", ("x", "hole")),
    "two grids, both": ("two grids", ("x", "low")),
    "two grids, the coarse": ("two grids", ("low",)),
    "tokens and picture, both": ("tokens and picture", ("x", "tokens")),
    "tokens and picture, tokens": ("tokens and picture", ("tokens",)),
}


@pytest.mark.parametrize("names", SIX, ids="; ".join)
def test_pictures(names: list[str]) -> None:
    assert_right(pictures(names, batch=2))


@pytest.mark.parametrize("case", EDITS)
def test_other_inputs_and_outputs(case: str) -> None:
    assert_right(other(*EDITS[case]))


# Works on any grid of 5 x 6 or more.
ANY_GRID = [
    *("unfold and fold", "attention, gated", "attention, enable_gqa", "convnext v2"),
    *("squeeze excite, linear", "axial attention", "dynamic kernels", "dynamic convolution"),
    *("deformable", "latents", "rotary", "roll", "roll flat", "flip", "turned", "strided rows"),
    *("cropped", "channel shuffle", "cumsum", "fourier", "index", "differences", "quadrants"),
    *("doubled", "doubled by repeats", "strips", "quantised", "blurred", "warped", "extremes"),
]


@settings(max_examples=6)
@given(
    names=st.lists(st.sampled_from(ANY_GRID), min_size=2, max_size=2, unique=True),
    grid=st.tuples(st.integers(5, 13), st.integers(6, 13)),
    batch=st.integers(1, 2),
    recipes=st.lists(MASKS, min_size=1, max_size=3),
    exact=st.booleans(),
)
def test_any_grid(
    names: list[str], grid: tuple[int, int], batch: int, recipes: list[MaskRecipe], exact: bool
) -> None:
    example, chosen = pictures(names, grid, batch), [recipe.build(grid) for recipe in recipes]
    errors = exact_errors(example, *chosen) if exact else fixed_errors(example, *chosen)[0]
    assert not above(errors, ALLOWED)


@pytest.mark.parametrize("active", range(5), ids=("none", "one", "square", "some", "all"))
def test_new_prompt_with_a_mask(active: int) -> None:
    """The prompt holds for the active sites; with all of them active the run is the dense one."""
    example, prompt = other("prompted"), torch.randn(2, 5)
    mask = list(masks((8, 12)))[active]
    if not mask.any():
        with pytest.raises(MaskError, match="does not lie on a grid"):
            fixed_errors(example, mask, prompt=prompt)
        return
    assert not above(fixed_errors(example, mask, prompt=prompt)[0], ALLOWED)
    if mask.all():
        sparse, _, baseline = example.sparse("exact")
        inputs = {**example.edited(mask), "prompt": prompt}
        got = sparse.update(baseline, mask=mask, **inputs)
        with torch.no_grad():
            torch.testing.assert_close(got, example.model(**inputs), rtol=1e-4, atol=1e-5)


class OwnMask(nn.Module):
    """Calls the hole in the picture ``mask``."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(C + 1)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.conv(torch.cat((x, mask), 1))


@torch.no_grad()
def test_an_input_called_mask_goes_by_position() -> None:
    x, hole = torch.randn(1, C, 8, 12), torch.rand(1, 1, 8, 12).round()
    model = OwnMask().eval()
    sparse = sparsify(model, policy="exact", backend="eager")
    _, baseline = sparse.record(x, hole)
    for mask in masks((8, 12)):
        new = torch.where(mask, x + 1, x), torch.where(mask, 1 - hole, hole)
        torch.testing.assert_close(sparse.update(baseline, *new, mask=mask), model(*new))


class InPlace(nn.Module):
    """Writes to its input, as careless code does."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.mul_(2))


@torch.no_grad()
def test_a_network_that_writes_to_its_input() -> None:
    x, model, everything = torch.randn(1, C, 8, 12), InPlace().eval(), torch.ones(8, 12) > 0
    sparse = sparsify(model, policy="exact", backend="eager")
    for _ in range(2):  # the first captures the network
        output, baseline = sparse.record(x.clone())
        torch.testing.assert_close(output, model(x.clone()))
        got = sparse.update(baseline, x.clone() + 1, mask=everything)
        torch.testing.assert_close(got, model(x + 1))


class Far(nn.Module):
    """A picture of booleans, read from further away than the other one."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = conv(kernel=1), conv(1, kernel=5)

    def forward(self, x: Tensor, hole: Tensor) -> Tensor:
        return self.near(x) + self.far(hole.to(x.dtype))


@torch.no_grad()
def test_an_edited_picture_of_truth_values() -> None:
    """Exact is exact, also for an edit of what is no float."""
    x, hole, model = torch.randn(1, C, 8, 12), torch.rand(1, 1, 8, 12) < 0.5, Far().eval()
    sparse = sparsify(model, policy="exact", backend="eager")
    _, baseline = sparse.record(x, hole)
    mask = list(masks((8, 12)))[1]
    new = torch.where(mask, x + 1, x), torch.where(mask, ~hole, hole)
    torch.testing.assert_close(sparse.update(baseline, *new, mask=mask), model(*new))


class Function(nn.Module):
    """A function of a picture, after a convolution."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.conv, self.function = conv(), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.conv(x))


RANDOM = {
    "randn": lambda y: y + torch.randn(y.shape),
    "randn_like": lambda y: y + torch.randn_like(y),
    "rand_like": lambda y: torch.where(torch.rand_like(y) < 0.5, y, 0.0),
    "bernoulli": lambda y: y * torch.bernoulli(torch.full_like(y, 0.5)),
    "dropout": lambda y: torch.nn.functional.dropout(y, 0.5, training=True),
}


@pytest.mark.parametrize("name", RANDOM)
@torch.no_grad()
def test_noise_drawn_by_the_network_is_the_recorded_one(name: str) -> None:
    """Else an unchanged input would not give the baseline back."""
    x, model = torch.randn(1, C, 8, 12), Function(RANDOM[name]).eval()
    sparse = sparsify(model, backend="eager", dilate=0)
    output, baseline = sparse.record(x)
    for mask in masks((8, 12)):
        torch.testing.assert_close(sparse.update(baseline, x, mask=mask), output)


@pytest.mark.parametrize("value", [None, 3, "text", True])
def test_outputs_that_are_no_tensors(value: object) -> None:
    example = Example(
        Function(lambda y: (y, value, [y.sum((2, 3))])), {"x": torch.randn(1, C, 8, 12)}
    )
    assert_right(example)


@dataclass
class Unknown:
    """An output that no one has told pytree about."""

    picture: Tensor


def test_unknown_containers_are_refused() -> None:
    with pytest.raises(CaptureError, match="Unknown"):
        sparsify(Function(Unknown).eval()).record(torch.randn(1, C, 8, 12))


class Attending(nn.Module):
    """Tokens of a picture under a mask of attention, which is no picture."""

    def forward(self, x: Tensor, keys: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)[:, None]
        y = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens, keys)
        return x + y[:, 0].transpose(1, 2).reshape(x.shape)


def test_masks_of_attention_are_no_pictures() -> None:
    keys = torch.rand(1, 1, 48, 48, generator=torch.Generator().manual_seed(0)) < 0.5
    keys[..., 0] = True
    report = assert_right(Example(Attending(), {"x": torch.randn(1, 4, 6, 8), "keys": keys}))
    assert report.share("packed") == 1.0
