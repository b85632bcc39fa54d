"""Python numbers that only feed arithmetic are inputs: one capture serves all timesteps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

import sparsify
from sparsify import SessionError, SignatureError, SparseModule, program
from tests.nets.base import C, conv

X = torch.randn(1, C, 8, 12, generator=torch.Generator().manual_seed(0))
MASK = torch.zeros(8, 12, dtype=torch.bool)
MASK[2:4, 3:6] = True


class Timed(nn.Module):
    """A convolution, and what ``use`` makes of it and a number."""

    def __init__(self, use: Callable[[Tensor, Any], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.use, self.calls = conv(), use, list[str]()

    def forward(self, x: Tensor, t: Any, flag: bool = True) -> Tensor:
        return self.use(self.conv(x), t)


def embedding(y: Tensor, t: Any) -> Tensor:
    t = t if isinstance(t, Tensor) else torch.tensor(t)
    return y + (t.reshape(1, 1).to(y.dtype) * torch.arange(1, C + 1) / 9).sin().view(1, C, 1, 1)


ARITHMETIC = {
    "scale": lambda y, t: y * t,
    "quotient": lambda y, t: (1 - t) / 1000 + y**2 / t,
    "embedding": embedding,
    "of two": lambda y, t: torch.where(y > t, y - t, t / (t + 1.0)),
}
CONTROL = {
    "branch": lambda y, t: y if t > 3 else -y,
    "shape": lambda y, t: y.unflatten(1, (-1, int(t))).flatten(1, 2) + int(t),
    "loop": lambda y, t: y + sum(range(int(t))),
    "by kind": lambda y, t: y + 1 if isinstance(t, Tensor) else y,
    "dtype": lambda y, t: y.mul(4).to(torch.int32) * t,
}


@pytest.fixture
def captures() -> Iterator[list[Any]]:
    """What is captured in the test: the programs, one a signature."""
    made: list[Any] = []
    real = program.Program.__init__

    def counting(self: Any, *args: Any, **kwargs: Any) -> None:
        real(self, *args, **kwargs)
        made.append(self)

    with patch.object(program.Program, "__init__", counting):
        yield made


def wrapped(model: nn.Module) -> SparseModule:
    return sparsify.sparsify(model.eval(), backend="eager", policy="exact", dense_share=0.0)


@pytest.mark.parametrize("name", ARITHMETIC)
@pytest.mark.parametrize("kind", [int, float])
@torch.no_grad()
def test_one_capture_for_all(name: str, kind: type, captures: list[Any]) -> None:
    model = Timed(ARITHMETIC[name])
    sparse = wrapped(model)
    edited = torch.where(MASK, X + 1, X)
    for t in (kind(1), kind(3), kind(9)):
        output, baseline = sparse.record(X, t)
        torch.testing.assert_close(output, model(X, t))
        got = sparse.update(baseline, edited, t=t, mask=MASK)
        torch.testing.assert_close(got, model(edited, t), rtol=1e-4, atol=1e-5)
    assert len(captures) == 1


@pytest.mark.parametrize("name", CONTROL)
@torch.no_grad()
def test_control_flow_keeps_constants(
    name: str, captures: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    model = Timed(CONTROL[name])
    sparse = wrapped(model)
    with patch("sparsify.numbers._with_tensors", wraps=sparsify.numbers._with_tensors) as tried:
        for t in (2.0, 4.0, 2.0):
            torch.testing.assert_close(sparse.record(X, t)[0], model(X, t))
    assert tried.call_count == 1 and len(captures) == 2
    assert "".join(capfd.readouterr()) == ""


def test_truth_values_are_constants(captures: list[Any]) -> None:
    sparse = wrapped(Timed(ARITHMETIC["scale"]))
    for flag in (False, True):
        sparse.record(X, 3, flag)
    assert len(captures) == 2


@torch.no_grad()
def test_sessions_compare_numbers() -> None:
    model = Timed(embedding)
    sparse = wrapped(model)
    with sparse.recording() as session:
        for t in (9, 5, 1):
            sparse(X, t)
    edited = torch.where(MASK, X + 1, X)
    with session.editing(MASK):
        for t in (9, 5, 1):
            torch.testing.assert_close(sparse(edited, t), model(edited, t))
    with pytest.raises(SessionError, match="t is 4 but 9"), session.editing(MASK):
        sparse(edited, 4)


@torch.no_grad()
def test_batches_and_large_edits() -> None:
    """Items with masks of their own are cut out of calls with numbers too."""
    model = Timed(embedding)
    sparse = wrapped(model)
    x = torch.cat([X, 2 * X])
    masks = torch.stack([MASK, MASK.flip(0)])
    edited = torch.where(masks[:, None], x + 1, x)
    _, baseline = sparse.record(x, 7)
    got, later = sparse.update(baseline, edited, 7, mask=masks, commit=True)
    torch.testing.assert_close(got, model(edited, 7), rtol=1e-4, atol=1e-5)
    got = sparse.update(later, edited + 1, 7, mask=torch.ones_like(MASK))
    torch.testing.assert_close(got, model(edited + 1, 7), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_unets_of_diffusers(captures: list[Any]) -> None:
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    ).eval()  # fmt: skip
    sparse, x = wrapped(unet), torch.randn(1, 3, 8, 8)
    for t in (7, 900):
        output, _ = sparse.record(x, timestep=t, return_dict=False)
        torch.testing.assert_close(output[0], unet(x, t).sample)
    assert len(captures) == 1


@torch.no_grad()
def test_exports_take_numbers(tmp_path: Path) -> None:
    model = Timed(embedding)
    wrapped(model).export(tmp_path / "net", X, 3)
    loaded = sparsify.load(tmp_path / "net")
    for t in (3, 8):
        output, baseline = loaded.record(X, t)
        torch.testing.assert_close(output, model(X, t))
        torch.testing.assert_close(loaded.update(baseline, X, t, mask=MASK), output)


@torch.no_grad()
def test_exports_keep_constants(tmp_path: Path) -> None:
    model = Timed(CONTROL["loop"])
    wrapped(model).export(tmp_path / "net", X, 3)
    loaded = sparsify.load(tmp_path / "net")
    torch.testing.assert_close(loaded.record(X, 3)[0], model(X, 3))
    with pytest.raises(SignatureError, match="t is 4 but 3"):
        loaded.record(X, 4)
