"""Exported folders that sample by a schedule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparsify import ConfigError, Schedule, load, sparsify
from sparsify.folder import Format
from tests.small import small_inputs, small_unet

STEPS = 6


@torch.no_grad()
def sampled(net: Any) -> Tensor:
    x, _, context = small_inputs()
    for t in range(STEPS, 0, -1):
        x = x - net(x, torch.tensor(t / STEPS), context) / STEPS
    return x


@torch.no_grad()
def samples_as_its_model_does(format: Format, part: str, tmp_path: Path) -> None:
    """By the exported schedule, twice; and by one that reuses the output, which any folder can."""
    sparse = sparsify(small_unet(), backend="eager")
    schedule = Schedule.every(3, STEPS, order=1, reuse=part)
    sparse.export(tmp_path / "net", *small_inputs(), format=format, schedule=schedule)
    folder = load(tmp_path / "net")
    for own, given in ((schedule, None), (other := Schedule.every(2, STEPS), other)):
        with sparse.sampling(own):
            want = sampled(sparse)
        with folder.sampling(given) as model:
            for _ in range(2):
                torch.testing.assert_close(sampled(model), want, rtol=1e-4, atol=1e-5)
        assert (model.called, model.forecast) == (2 * len(own.keys), 2 * (STEPS - len(own.keys)))
    refused = folder.sampling(Schedule.every(2, STEPS, reuse="blocks"))
    with pytest.raises(ConfigError, match=f"reuse '{part}', not 'blocks'"), refused:
        pass
    folder.signature = replace(folder.signature, schedule=None)
    with pytest.raises(ConfigError, match="export with a schedule"), folder.sampling():
        pass


def test_a_folder_samples_as_its_model_does(tmp_path: Path) -> None:
    samples_as_its_model_does("pt2", "encoder", tmp_path)
