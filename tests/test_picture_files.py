"""Pictures in files, whole and damaged."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from sparsify import SignatureError, SparsifyError
from sparsify.cli import pictures


def test_pictures_survive_their_file(tmp_path: Path) -> None:
    for channels in (1, 3):
        picture = torch.randint(256, (1, channels, 5, 7)) / 255
        pictures.write(picture, tmp_path / "new" / "a.png")
        assert torch.equal(pictures.read(tmp_path / "new" / "a.png", picture.shape), picture)
    pictures.write(torch.tensor([-3.0, 0.5, 9.0]).reshape(1, 1, 1, 3), tmp_path / "b.png")
    cut = pictures.read(tmp_path / "b.png", (1, 1, 1, 3))
    assert (cut.flatten() * 255).tolist() == [0, 128, 255]


def test_pictures_of_another_size_or_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pictures.write(torch.rand(1, 3, 5, 7), path)
    with pytest.raises(SignatureError, match=r"7x5 pixels but 9x5 were exported: resize"):
        pictures.read(path, (1, 3, 5, 9))
    path.write_text("no picture")
    with pytest.raises(SignatureError, match="save it as PNG"):
        pictures.read(path, (1, 3, 5, 7))


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.tiff", "a.webp", "a.gif"])
def test_damaged_pictures_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    pictures.write(torch.rand(1, 3, 40, 50), path)
    content = path.read_bytes()
    for part in (0, 1, len(content) // 4, len(content) // 2):
        path.write_bytes(content[:part])
        with pytest.raises(SignatureError, match="save it as PNG"):
            pictures.read(path, (1, 3, 40, 50))


def test_a_photograph_is_turned_as_the_camera_noted(tmp_path: Path) -> None:
    picture = torch.randint(256, (1, 3, 5, 7)) / 255
    pictures.write(picture, path := tmp_path / "a.png")
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 6  # a quarter turn to the right
        image.save(path, exif=exif)
    turned = pictures.read(path, (1, 3, 7, 5))
    assert torch.equal(turned, picture.rot90(-1, (2, 3)))


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SparsifyError, match="cannot be written"):
        pictures.write(torch.rand(1, 3, 5, 7), tmp_path / "file" / "a.png")
