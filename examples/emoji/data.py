"""Pictures of emoji and what they show: Noto's flat ones, and Fluent's glossy ones."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
import tempfile
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 64
NOTO = "emoji-datasource-google", "16.0.0"  # images of Google: Apache-2.0
FLUENT = "@lobehub/fluent-emoji-3d", "1.1.0"  # images of Microsoft: MIT
_REGISTRY = "https://registry.npmjs.org"


def emoji() -> tuple[np.ndarray, list[str]]:
    """uint8 [count, 64, 64, 3] on white, and a prompt for each: "glossy smiling cat face".

    Emoji of several skin tones are there once. The first call downloads 90 MB from the npm
    registry into ``$SPARSIFY_CACHE`` (default ``~/.cache/sparsify``).
    """
    noto, fluent = _package(*NOTO), _package(*FLUENT)
    pictures, prompts = [], []
    for entry in json.loads((noto / "emoji.json").read_text(encoding="utf-8")):
        name = _words(entry["name"] or entry["short_name"])
        code = entry["unified"].lower()
        for style, path in (
            ("flat", noto / "img/google/64" / entry["image"]),
            ("glossy", fluent / "assets" / f"{code}.webp"),
        ):
            if path.exists():
                pictures.append(_picture(path))
                prompts.append(f"{style} {name}")
    return np.stack(pictures), prompts


def _words(name: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", name.lower()))


def _picture(path: Path) -> np.ndarray:
    image = Image.open(path).convert("RGBA").resize((SIZE, SIZE), Image.Resampling.LANCZOS)
    white = Image.new("RGBA", image.size, "white")
    return np.asarray(Image.alpha_composite(white, image).convert("RGB"))


def _package(name: str, version: str) -> Path:
    """The unpacked npm package; downloaded once."""
    cache = Path(os.environ.get("SPARSIFY_CACHE") or Path.home() / ".cache" / "sparsify")
    plain = name.split("/")[-1]
    folder = cache / f"{plain}-{version}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(f"{_REGISTRY}/{name}/-/{plain}-{version}.tgz") as response:
            content = io.BytesIO(response.read())
        # Unpacked beside its place: one rename publishes all files or none.
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            with tarfile.open(fileobj=content) as archive:
                archive.extractall(scratch, filter="data")
            (Path(scratch) / "package").rename(folder)
    return folder
