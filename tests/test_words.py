"""What is large is told in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sparsify import load, sparsify
from sparsify.session import Recording
from sparsify.words import size_of
from tests.small import corner

IMAGE, MASK = torch.ones(2, 3, 16, 16), corner()


def everything(folder: Path) -> dict[str, Any]:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16)).eval()
    sparse = sparsify(model, backend="eager", dilate=0, dense_share=0.0, dense_above=1.0)
    _, baseline = sparse.record(IMAGE)
    plan, restricted = sparse.plan(MASK), sparse.restrict(baseline, MASK)
    sparse.export(folder / "exported", IMAGE)
    loaded = load(folder / "exported")
    with sparse.recording() as session:
        sparse(IMAGE)
    with session.editing(MASK) as editing:
        sparse(IMAGE)
    return {
        "baseline": baseline,
        "restricted": restricted,
        "plan": plan,
        "tables": plan.tables[baseline.key],
        "program": sparse._engine.program_of(baseline),
        "session": session,
        "recording": Recording(session),
        "editing": editing,
        "loaded": loaded.record(IMAGE)[1],
        "loaded plan": loaded.plan(MASK),
    }


@torch.no_grad()
def test_one_line_says_what_it_is(tmp_path: Path) -> None:
    found = everything(tmp_path)
    for value in found.values():
        text = repr(value)
        assert type(value).__name__ in text and "\n" not in text and "tensor(" not in text
        assert len(text) < 120 + len(str(tmp_path))
    baseline, restricted = found["baseline"], found["restricted"]
    said = f"<Baseline of [2, 16, 16, 16]: {size_of(baseline.nbytes)} kept>"
    assert repr(baseline) == said
    assert repr(restricted).endswith("kept, restricted to 24 of 512 sites>")
    assert repr(found["plan"]) == "<Plan of [16, 16]: 12 of 256 sites>"
    assert repr(found["editing"]) == "<Editing: 1 of 1 calls made>"


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 << 20, "3.0 MiB"), (5 << 30, "5.0 GiB")],
)
def test_bytes_in_the_unit_that_fits(count: int, said: str) -> None:
    assert size_of(count) == said
