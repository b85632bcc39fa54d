"""The code that runs can be read."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
import torch.fx
from sparsify.codegen.emit import Compiled
from torch import Tensor, nn
from torch.fx import symbolic_trace

from sparsify import dump, sparsify
from sparsify.source import own_kernels

X = torch.randn(1, 3, 8, 8)


class Smooth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(self.conv(x).sigmoid(), 3, 1, 1)


@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_dump(backend: str, tmp_path: Path) -> None:
    sparse = sparsify(Smooth().eval(), backend=backend)
    code = sparse.code(X)
    assert ("def forward(self, x_edited" if backend == "eager" else "async_compile") in code
    paths = dump(sparse, tmp_path / "code", X)
    graphs = ["constants", "plan", "record", "dense", "conditions", "update", "again", "commit"]
    names = [*graphs, "update_compiled"]
    assert [path.name for path in paths] == [f"{name}.py" for name in names]
    for path in paths:
        compile(path.read_text(), path, "exec")
    assert paths[-1].read_text() == code


def test_own_kernels_go_along() -> None:
    (name, text), *others = own_kernels("torch.ops.sparsify.gather_conv.default(x)").items()
    assert name == "kernel_gather_conv.py" and "def matmul_kernel" in text and not others


@torch.fx.wrap
@torch._dynamo.disable
def own(x: Tensor) -> Tensor:
    """What dynamo cannot trace."""
    return x * 2


def test_what_cannot_be_compiled_runs_as_it_is() -> None:
    compiled = Compiled(symbolic_trace(lambda x: own(x) + 1), {})
    with pytest.warns(UserWarning, match="runs uncompiled"):
        assert compiled(X).equal(X * 2 + 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert compiled(X).equal(X * 2 + 1)
    assert "own" in compiled.source
