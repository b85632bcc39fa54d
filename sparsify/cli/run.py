"""``sparsify run``: an edit of a picture through an exported network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves

import sparsify

from ..codegen.errors import SignatureError
from ..masks import difference_mask
from ..timing import timed
from . import pictures
from .options import console

EXAMPLES = (
    "sparsify run upscaler.sparse --before cat.png --after retouched.png -o large.png",
    "sparsify run unet.sparse --before a.png --after b.png -o c.png --input timestep=10",
)

HALF_A_LEVEL = 0.5 / 255  # pictures of 8 bits: pixels that differ at all differ by more


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE, as in timestep=10 or text=text.npy")
    return name, value


def _writable(path: Path) -> Path:
    if path.suffix.lower() not in Image.registered_extensions():
        raise typer.BadParameter(f"{path.name!r} names no format of pictures: end it in .png")
    return path


def command(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", exists=True, help="What `sparsify export` wrote.")
    ],
    before: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="Picture as it was: recorded.")
    ],
    after: Annotated[
        Path, typer.Option(exists=True, dir_okay=False, help="The same picture, edited.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", callback=_writable, help="Picture to write.")],
    input: Annotated[
        list[Any] | None,
        typer.Option(
            parser=_pair,
            metavar="NAME=VALUE",
            help="Another input of the network: a number, or a file.npy.",
        ),
    ] = None,
) -> None:
    """Record one picture, update to its edited version, and write what the network makes of it.

    Pictures are RGB or grey in [0, 1]; pixels that differ between them are the edit.
    """
    network = sparsify.load(path)
    inputs = [_Input.of(entry) for entry in network.signature["inputs"]]
    edited = _edited(inputs)
    others = _others([entry for entry in inputs if entry != edited], dict(input or ()))
    old, new = (pictures.read(file, edited.shape).to(edited.dtype) for file in (before, after))

    def arguments(picture: Tensor) -> list[Tensor]:
        return [picture if entry == edited else others[entry.name] for entry in inputs]

    mask = difference_mask(old, new, threshold=HALF_A_LEVEL)
    recorded, (output, baseline) = timed(lambda: network.record(*arguments(old)))
    console.print(f"record {recorded:.0f} ms")
    if mask.any():
        updated, output = timed(lambda: network.update(baseline, *arguments(new), mask=mask))
        share = f"{float(mask.float().mean()):.2%} of the pixels are edited"
        console.print(f"update {updated:.0f} ms, {share}")
    else:
        console.print("nothing changed: both pictures are the same, so the recorded output is it")
    pictures.write(_shown(output), out)
    console.print(f"written to {out}", markup=False, highlight=False)


@dataclass(frozen=True)
class _Input:
    """An input that the exported network takes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> _Input:
        return cls(entry["name"], tuple(entry["shape"]), getattr(torch, entry["dtype"]))

    def value(self, text: str) -> Tensor:
        """A number for all of it, or the array of a file. Raises :class:`SignatureError`."""
        if not text.endswith(".npy"):
            try:
                return torch.full(self.shape, float(text)).to(self.dtype)
            except ValueError:
                raise SignatureError(f"{self.name}={text}: give a number or a file.npy") from None
        try:
            array = torch.from_numpy(np.load(text))
        except (OSError, ValueError) as error:
            raise SignatureError(f"{self.name}={text} cannot be read: {error}") from None
        if tuple(array.shape) != self.shape:
            raise SignatureError(
                f"{self.name}={text} is {list(array.shape)} but {list(self.shape)} was exported: "
                "save an array of that shape"
            )
        return array.to(self.dtype)


def _edited(inputs: Sequence[_Input]) -> _Input:
    found = [entry for entry in inputs if pictures.is_picture(entry.shape)]
    if not found:
        shapes = ", ".join(f"{entry.name} {list(entry.shape)}" for entry in inputs)
        raise SignatureError(
            f"no input is one picture of 1 or 3 channels ({shapes}): use sparsify.load in Python"
        )
    return found[0]


def _others(inputs: Sequence[_Input], given: Mapping[str, str]) -> dict[str, Tensor]:
    names = [entry.name for entry in inputs]
    if unknown := sorted(set(given) - set(names)):
        raise SignatureError(f"{unknown[0]!r} is not among its other inputs: {', '.join(names)}")
    if missing := [name for name in names if name not in given]:
        raise SignatureError(
            f"{missing[0]} is missing: add --input {missing[0]}=NUMBER or FILE.npy"
        )
    return {entry.name: entry.value(given[entry.name]) for entry in inputs}


def _shown(output: Any) -> Tensor:
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and pictures.is_picture(tuple(leaf.shape)):
            return leaf
    raise SignatureError("no output is one picture of 1 or 3 channels: use sparsify.load in Python")
