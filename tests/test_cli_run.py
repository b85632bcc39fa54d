"""``sparsify export`` and ``sparsify run``: a picture edited through an exported network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from sparsify import load, sparsify
from sparsify.cli import pictures
from sparsify.cli.app import app
from sparsify.masks import difference_mask

SHAPE = (1, 3, 12, 16)


class Sharpen(nn.Module):
    """Twice as large, by local operators, with a strength and a shift."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, picture: Tensor, strength: Tensor, shift: Tensor, scale: int) -> Tensor:
        large = nn.functional.interpolate(self.enter(picture).relu(), scale_factor=scale)
        return (self.leave(large) * strength.reshape(-1, 1, 1, 1) + shift).sigmoid()


class Latents(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return latents * 2


def sharpen() -> tuple[nn.Module, tuple[Any, ...]]:
    return Sharpen(), (torch.rand(SHAPE), torch.ones(1), torch.zeros(3, 1, 1), 2)


def latents() -> tuple[nn.Module, tuple[Any, ...]]:
    return Latents(), (torch.rand(1, 4, 8, 8),)


def called(*arguments: str) -> Any:
    return CliRunner().invoke(app, arguments)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "sharpen"
    result = called("export", f"python:{__name__}:sharpen", str(path), "--policy", "exact")
    assert result.exit_code == 0, result.output
    assert load(path).signature.config["policy"] == "exact"
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a picture, its edited version and a shift."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    before = torch.randint(255, SHAPE) / 255
    after = before.clone()
    after[..., 3:6, 2:7] = 1 - after[..., 3:6, 2:7]
    after[..., 8, 9] += 1 / 255  # the smallest edit that a file can hold
    pictures.write(before, Path("a.png"))
    pictures.write(after, Path("b.png"))
    np.save("shift.npy", np.array([0.1, 0.2, -0.3], dtype=np.float64).reshape(3, 1, 1))
    return tmp_path


def run(exported: Path, *others: str, after: str = "b.png") -> Any:
    files = ("--before", "a.png", "--after", after, "-o", "out/c.png")
    return called("run", str(exported), *files, *others)


INPUTS = ("--input", "strength=3", "--input", "shift=shift.npy")


def test_run_writes_what_the_network_makes_of_the_edit(exported: Path, folder: Path) -> None:
    result = run(exported, *INPUTS)
    assert result.exit_code == 0, result.output
    assert f"{16 / 192:.2%} of the pixels are edited" in result.stdout
    assert "record " in result.stdout and "update " in result.stdout
    old, new = (pictures.read(Path(name), SHAPE) for name in ("a.png", "b.png"))
    others = (torch.tensor([3.0]), torch.from_numpy(np.load("shift.npy")).float(), 2)
    model = sparsify(Sharpen().eval(), policy="exact", backend="eager")
    recorded, baseline = model.record(old, *others)
    mask = difference_mask(old, new, threshold=0)
    expected = model.update(baseline, new, *others, mask=mask)
    written = pictures.read(Path("out/c.png"), (1, 3, 24, 32))
    assert float((written - expected).abs().max()) < 0.51 / 255
    assert float((recorded - expected).abs().max()) > 5 / 255


def test_identical_pictures_give_the_recorded_output(exported: Path, folder: Path) -> None:
    result = run(exported, *INPUTS, after="a.png")
    assert result.exit_code == 0 and "nothing changed" in result.stdout
    picture = pictures.read(Path("a.png"), SHAPE)
    shift = torch.from_numpy(np.load("shift.npy")).float()
    with torch.no_grad():
        expected = Sharpen()(picture, torch.tensor([3.0]), shift, 2)
    written = pictures.read(Path("out/c.png"), (1, 3, 24, 32))
    assert float((written - expected).abs().max()) < 0.51 / 255


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ((), "strength is missing: add --input strength=NUMBER"),
        ((*INPUTS, "--input", "step=1"), "'step' is not among the other inputs: strength, shift"),
        (("--input", "strength=high", "--input", "shift=0"), "strength=high: give a number"),
        (("--input", "strength=shift.npy", "--input", "shift=0"), "but [1] was exported"),
        (("--input", "strength=gone.npy", "--input", "shift=0"), "gone.npy cannot be read"),
    ],
)
def test_wrong_inputs_are_named(
    exported: Path, folder: Path, others: tuple[str, ...], said: str
) -> None:
    result = run(exported, *others)
    assert result.exit_code == 1 and said in result.stderr and result.stderr.count("\n") == 1


def test_pictures_have_the_exported_size(exported: Path, folder: Path) -> None:
    pictures.write(torch.rand(1, 3, 12, 12), Path("b.png"))
    result = run(exported, *INPUTS)
    assert result.exit_code == 1 and "b.png has 12x12 pixels but 16x12 were" in result.stderr


def test_latents_are_no_picture(folder: Path) -> None:
    assert called("export", f"python:{__name__}:latents", "latents").exit_code == 0
    result = run(Path("latents"))
    assert result.exit_code == 1 and "no input is one picture" in result.stderr


def test_a_folder_that_was_not_exported(folder: Path) -> None:
    result = run(folder)
    assert result.exit_code == 1 and "signature.json" in result.stderr


def test_an_export_without_its_packages_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnx_ir", "onnxscript"):
        with monkeypatch.context() as missing:
            missing.setitem(sys.modules, name, None)
            result = called("export", f"python:{__name__}:latents", "out", "--format", "onnx")
        assert result.exit_code == 1 and result.stderr.count("\n") == 1
        assert f"{name}, which is missing: pip install 'sparsify[export]'" in result.stderr
        assert not Path("out").exists()


def test_an_export_to_where_nothing_can_be_written(folder: Path) -> None:
    Path("file").write_text("in the way")
    result = called("export", f"python:{__name__}:latents", "file/out")
    assert result.exit_code == 1 and "give another path" in result.stderr
    assert result.stderr.count("\n") == 1


def test_an_empty_array(exported: Path, folder: Path) -> None:
    Path("empty.npy").touch()
    result = run(exported, "--input", "strength=empty.npy", "--input", "shift=0")
    assert result.exit_code == 1 and "empty.npy cannot be read" in result.stderr
