"""The tiny pipelines are fit for tests: they repeat themselves, and heed their inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.pipelines import CASES


def pictures(pipe: Any, call: dict[str, Any], seed: int = 0) -> torch.Tensor:
    result: torch.Tensor = pipe(**call, generator=torch.Generator().manual_seed(seed))[0]
    return result


@pytest.mark.parametrize("name", CASES)
def test_pictures_depend_on_seed_and_prompt_alone(name: str) -> None:
    case = CASES[name]
    pipe = case.build()
    first = pictures(pipe, case.inputs())
    assert first.isfinite().all()
    assert torch.equal(pictures(pipe, case.inputs()), first)
    others = {
        "latents": pictures(pipe, case.inputs(), seed=1),
        "prompt": pictures(pipe, case.inputs() | case.changed()),
    }
    for change, other in others.items():
        assert (other - first).abs().mean() > 0.005, change
