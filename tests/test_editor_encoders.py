"""Pictures that a pipeline is given: an encoder computes what is new of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify import Editor, SparsifyWarning
from tests.pipelines import CASES
from tests.pipelines.parts import picture as drawn
from tests.test_editor import picture, seeded

GIVEN = ["sd-img2img", "sd-inpaint", "sd-inpaint-blended"]
EVERYWHERE = torch.ones(4, 4, dtype=torch.bool)


def painted(image: Tensor) -> Tensor:
    image = image.clone()
    image[..., 4:8, 6:12] = 1 - image[..., 4:8, 6:12]
    return image


@pytest.mark.parametrize("case", GIVEN)
@torch.no_grad()
def test_what_is_painted_is_encoded_alone(case: str) -> None:
    pipe, call = CASES[case].build(), seeded(case)
    editor = Editor(pipe, backend="eager")
    first = editor(**call)
    known = len(first.sessions["vae.encoder"].calls)
    changed = {"image": painted(call["image"])}
    result = editor.edit(first, mask=EVERYWHERE, **changed)
    assert len(result.sessions["vae.encoder"].calls) == known > 0
    report = result.reports["vae.encoder"]
    assert 0 < report.macs_now < 0.5 * report.macs_dense
    twice = editor.edit(result, mask=EVERYWHERE, image=call["image"])
    torch.testing.assert_close(picture(twice.output), picture(first.output), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", GIVEN)
def test_a_painted_picture_is_the_dense_one_under_policy_exact(case: str) -> None:
    pipe, call = CASES[case].build(), seeded(case)
    editor = Editor(pipe, backend="eager", policy="exact")
    result = editor(**call)
    for changed in (painted(call["image"]), drawn(7), call["image"]):
        result = editor.edit(result, mask=EVERYWHERE, image=changed)
        want = CASES[case].build()(**seeded(case) | {"image": changed})
        torch.testing.assert_close(picture(result.output), picture(want), rtol=1e-3, atol=1e-4)


def test_an_encoder_that_cannot_be_captured_runs_as_it_is() -> None:
    pipe, call = CASES["sd-img2img"].build(), seeded("sd-img2img")
    encode = type(pipe.vae.encoder).forward

    class Moody(type(pipe.vae.encoder)):  # type: ignore[misc]
        def forward(self, sample: Tensor) -> Any:
            return encode(self, sample if sample.mean() > -9 else -sample)

    pipe.vae.encoder.__class__ = Moody
    want = pipe(**call | {"image": painted(call["image"])})
    editor = Editor(pipe, backend="eager", policy="exact")
    with pytest.warns(SparsifyWarning, match=r"vae\.encoder runs densely in every edit"):
        first = editor(**seeded("sd-img2img"))
    result = editor.edit(first, mask=EVERYWHERE, image=painted(call["image"]))
    torch.testing.assert_close(picture(result.output), picture(want), rtol=1e-3, atol=1e-4)
    assert "vae.encoder" not in result.sessions
