"""Edits through the call of a diffusers pipeline, of every kind of pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify import Editor
from tests.pipelines import CASES

SINGLE = [name for name in CASES if name != "sdxl-refiner"]


def picture(output: Any) -> Tensor:
    return torch.as_tensor(output.images if hasattr(output, "images") else output.frames)


def seeded(case: str) -> dict[str, Any]:
    return {**CASES[case].inputs(), "generator": torch.Generator().manual_seed(0)}


def half_of(pictures: Tensor) -> Tensor:
    """bool [H, W]: the right half."""
    height, width = pictures.shape[-2:]
    mask = torch.zeros(height, width, dtype=torch.bool)
    mask[:, width // 2 :] = True
    return mask


@pytest.mark.parametrize("case", SINGLE)
def test_edits_of_every_pipeline(case: str) -> None:
    pipe, changed = CASES[case].build(), CASES[case].changed()
    want = picture(pipe(**seeded(case)))
    editor = Editor(pipe, backend="eager")
    first = editor(**seeded(case))
    old = picture(first.output)
    torch.testing.assert_close(old, want, rtol=1e-3, atol=1e-4)

    same = editor.edit(first)
    assert torch.equal(picture(same.output), old)
    assert same.mask is not None and not same.mask.any()

    mask = half_of(old)
    edited = picture(editor.edit(first, mask=mask, **changed).output)
    assert torch.equal(edited[..., ~mask], old[..., ~mask])
    assert (edited - old)[..., mask].abs().mean() > 1e-3

    found = editor.edit(first, after=1, **changed)
    assert found.mask is not None and found.mask.any()

    options: dict[str, Any] = {"after": 2, "margin": 0, **changed}
    ways = [editor.preview(first, find=find, **options) for find in ("attention", "reference")]
    found = editor.edit(first, find=("attention", "reference"), **options)
    assert torch.equal(found.mask, ways[0] | ways[1])
    assert found.mask.any()
    editor.close()
    assert torch.equal(picture(pipe(**seeded(case))), want)


@pytest.mark.parametrize("case", SINGLE)
def test_a_whole_edit_is_the_dense_run_under_policy_exact(case: str) -> None:
    pipe, changed = CASES[case].build(), CASES[case].changed()
    want = picture(pipe(**{**seeded(case), **changed}))
    editor = Editor(pipe, backend="eager", policy="exact")
    first = editor(**seeded(case))
    mask = torch.ones_like(half_of(picture(first.output)))
    got = picture(editor.edit(first, mask=mask, **changed).output)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
