"""``docs/passes.md`` is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from sparsify.codegen.errors import BaselineError
from torch import nn

from sparsify import sparsify
from tests.small import corner

PAGE = Path(__file__).parent.parent / "docs" / "passes.md"


@pytest.fixture
def names() -> dict[str, Any]:
    """What the page's code leaves."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    return names


def test_a_pass_sees_the_masks(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    passes = (names["ShowMasks"](),)
    sparsify(names["model"], passes=passes, backend="eager").record(names["picture"])
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown] == ["input_1", "conv2d", "gelu", "conv2d_1"]


def test_updates_follow_a_pass(names: dict[str, Any]) -> None:
    model, picture = names["model"], torch.randn(1, 3, 16, 16)
    passes = (names["TanhGelu"](),)
    sparse = sparsify(model, passes=passes, policy="exact", backend="eager")
    _, baseline = sparse.record(picture)
    edited = torch.where(corner(), picture + 1, picture)
    with torch.no_grad():
        want = nn.Sequential(model[0], nn.GELU("tanh"), model[2])(edited)
        assert not torch.allclose(model(edited), want, atol=1e-5)
    got = sparse.update(baseline, edited, mask=corner())
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    without = sparsify(model, policy="exact", backend="eager")
    with pytest.raises(BaselineError, match="another configuration"):
        without.update(baseline, edited, mask=corner())
