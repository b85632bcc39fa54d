"""``docs/weights.md`` is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).parent.parent / "docs" / "weights.md"


def test_the_page_runs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    code = "".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    exec(compile(code, str(PAGE), "exec"), names)
    shown = capsys.readouterr().out.splitlines()
    wanted = re.findall(r"^print\(.*\)  # (.*)$", code, re.MULTILINE)
    assert [*shown[:3], *shown[-2:]] == wanted
    assert names["found"].share <= 0.7
    edited, output, mask = names["edited"], names["output"], names["mask"]
    assert not torch.equal(edited[..., mask], output[..., mask])
