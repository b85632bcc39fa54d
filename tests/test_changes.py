"""Edits that an update leaves out are told once; what nobody can see, or asked not to, is not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from sparsify.passes.blend import sites
from sparsify.passes.layout import Layout
from torch import Tensor, nn

from sparsify import SparseModule, SparsifyWarning, sparsify
from tests.small import corner, small_inputs, small_unet


def module(**config: object) -> SparseModule:
    return sparsify(small_unet(), backend="eager", **config)


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error", SparsifyWarning)
        yield


@pytest.mark.parametrize("policy", ["fixed", "exact"])
def test_edits_outside_the_mask_are_told_once(policy: str) -> None:
    sparse, (x, *rest) = module(policy=policy, dilate=1), small_inputs()
    _, baseline = sparse.record(x, *rest)
    far = torch.zeros_like(corner())
    far[12:14, 12:16] = True
    inside = torch.where(corner(), x + 1, x)
    with silence():
        sparse.update(baseline, inside, *rest, mask=corner())
        sparse.update(baseline, torch.where(far, x + x.abs().max() / 200, x), *rest, mask=corner())
    with pytest.warns(SparsifyWarning, match=r"update: sample differs .* at 3\.1% of the sites"):
        sparse.update(baseline, torch.where(far, x + 1, inside), *rest, mask=corner())
    with silence():
        sparse.update(baseline, torch.where(far, x + 1, inside), *rest, mask=corner())


def test_the_widened_mask_counts() -> None:
    sparse, (x, *rest) = module(dilate=2), small_inputs()
    _, baseline = sparse.record(x, *rest)
    wide = torch.zeros_like(corner())
    wide[0:7, 0:7] = True
    edited = torch.where(wide, x + 1, x)
    with silence():
        sparse.update(baseline, edited, *rest, mask=corner())
    edited[..., 15, 15] += 1
    with pytest.warns(SparsifyWarning, match=r"at 0\.4% of the sites"):
        sparse.update(baseline, edited, *rest, mask=corner())


@pytest.mark.parametrize("large", [False, True])
def test_inverted_masks_are_told(large: bool) -> None:
    sparse, (x, *rest) = module(dense_above=0.1 if large else 1.0), small_inputs()
    _, baseline = sparse.record(x, *rest)
    edited = torch.where(corner(), x + 1, x)
    with pytest.warns(SparsifyWarning, match="do not invert"):
        sparse.update(baseline, edited, *rest, mask=~wide(corner()))


def wide(mask: Tensor) -> Tensor:
    return nn.functional.max_pool2d(mask[None].float(), 9, 1, 4)[0] > 0


def test_a_new_prompt_under_an_empty_mask() -> None:
    sparse, (x, t, prompt) = module(), small_inputs()
    output, baseline = sparse.record(x, t, prompt)
    nowhere = torch.zeros_like(corner())
    with silence():
        assert torch.equal(sparse.update(baseline, x, t, prompt.clone(), mask=nowhere), output)
    with pytest.warns(SparsifyWarning, match="empty, so the new context changes nothing"):
        sparse.update(baseline, x, t, prompt + 1, mask=nowhere)
    sparse = module()
    _, baseline = sparse.record(x, t, prompt)
    with pytest.warns(SparsifyWarning, match=r"at 4\.7% of the sites"):
        sparse.update(baseline, torch.where(corner(), x + 1, x), t, prompt, mask=nowhere)


def test_items_are_looked_at_one_by_one() -> None:
    sparse, (x, *rest) = module(dilate=0), small_inputs(2)
    _, baseline = sparse.record(x, *rest)
    masks = torch.stack([corner(), corner().flip(0)])
    with silence():
        edited = torch.where(masks[:, None], x + 1, x)
        sparse.update(baseline, edited, *rest, mask=masks)
    edited = torch.where(masks.any(0), x + 1, x)
    with pytest.warns(SparsifyWarning, match=r"at 4\.7% of the sites"):
        sparse.update(baseline, edited, *rest, mask=masks)


def test_the_warning_can_be_turned_off() -> None:
    sparse, (x, *rest) = module(warn_dropped=False), small_inputs()
    _, baseline = sparse.record(x, *rest)
    with silence():
        sparse.update(baseline, x + 1, *rest, mask=corner())


class Labels(nn.Module):
    """A map of labels, beside tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(2, 4)

    def forward(self, labels: Tensor, tokens: Tensor) -> Tensor:
        own = self.linear(tokens).transpose(1, 2).unflatten(2, (8, 8))
        return self.conv(labels.float()) + own


@pytest.mark.parametrize("name", ["labels", "tokens"])
@torch.no_grad()
def test_labels_and_tokens_are_looked_at(name: str) -> None:
    grids = {"tokens": (8, 8), "labels": (8, 8)}
    sparse = sparsify(Labels().eval(), backend="eager", grids=grids, dilate=0)
    inputs = {"labels": torch.randint(0, 2000, (1, 1, 8, 8)), "tokens": torch.randn(1, 64, 2)}
    _, baseline = sparse.record(**inputs)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[:4] = True
    edited = {**inputs, name: inputs[name].clone()}
    edited[name].view(-1)[-1] += 1
    with silence():
        sparse.update(baseline, mask=mask, **inputs)
    with pytest.warns(SparsifyWarning, match=rf"{name} differs .* at 1\.6% of the sites"):
        sparse.update(baseline, mask=mask, **edited)


@pytest.mark.parametrize(
    ("layout", "index"),
    [
        (Layout.image((2, 3, 4, 5)), (1, 2, 3, 1)),
        (Layout.image((2, 3, 6, 4, 5)), (1, 2, 5, 3, 1)),
        (Layout.image((2, 4, 5)), (1, 3, 1)),
        (Layout.tokens((2, 20, 3), (4, 5)), (1, 16, 2)),
        (Layout.tokens((2, 20), (4, 5)), (1, 16)),
    ],
)
def test_sites_of_every_layout(layout: Layout, index: tuple[int, ...]) -> None:
    marks = torch.zeros(layout.shape, dtype=torch.bool)
    marks[index] = True
    assert sites(layout, marks).nonzero().tolist() == [[1, 3, 1]]
