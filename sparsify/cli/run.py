"""``sparsify run``: an edit of a picture through an exported network."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from PIL import Image
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ..codegen.errors import SignatureError
from ..folder import FolderSignature, Input
from ..loader import load
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
    if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
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
    """Record a picture, update to its edited version, and write what the network makes.

    Pictures are RGB or grey in [0, 1]; pixels that differ between them are the edit.
    """
    network = load(path)
    edited, shape, dtype = _edited(network.signature)
    others = _others(network.signature, edited, dict(input or ()))
    old, new = (pictures.read(file, shape).to(dtype) for file in (before, after))
    mask = difference_mask(old, new, threshold=HALF_A_LEVEL)
    spent, (output, baseline) = timed(lambda: network.record(**{edited: old}, **others))
    console.print(f"record {spent:.0f} ms")
    if mask.any():
        update = partial(network.update, baseline, mask=mask, **{edited: new, **others})
        spent, output = timed(update)
        share = f"{float(mask.float().mean()):.2%} of the pixels are edited"
        console.print(f"update {spent:.0f} ms, {share}")
    else:
        console.print("nothing changed between the pictures: the recorded output is written")
    pictures.write(_shown(output), out)
    console.print(f"written to {out}", markup=False, highlight=False)


def _edited(signature: FolderSignature) -> tuple[str, tuple[int, ...], torch.dtype]:
    """Name, shape and dtype of the input that is the picture."""
    tensors = [(entry, _value(signature, entry.name)) for entry in signature.inputs if entry.name]
    for entry, (shape, dtype) in tensors:
        if entry.grid is not None and pictures.is_picture(shape):
            return entry.path, shape, dtype
    shapes = ", ".join(f"{entry.path} {list(shape)}" for entry, (shape, _) in tensors)
    raise SignatureError(
        f"no input is one picture of 1 or 3 channels ({shapes}): use sparsify.load in Python"
    )


def _others(signature: FolderSignature, edited: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The inputs beside the picture: constants as exported, tensors as given."""
    rest = [entry for entry in signature.inputs if entry.path != edited]
    tensors = [entry.path for entry in rest if entry.name]
    if unknown := sorted(set(given) - set(tensors)):
        names = ", ".join(tensors) or "there are none"
        raise SignatureError(f"{unknown[0]!r} is not among the other inputs: {names}")
    values: dict[str, Any] = {}
    for entry in rest:
        if not entry.path.isidentifier():
            raise SignatureError(f"{entry.path} lies in a container: use sparsify.load in Python")
        if entry.name is None:
            values[entry.path] = _constant(entry)
        elif entry.path in given:
            shape, dtype = _value(signature, entry.name)
            values[entry.path] = _tensor(f"{entry.path}={given[entry.path]}", shape).to(dtype)
        else:
            raise SignatureError(
                f"{entry.path} is missing: add --input {entry.path}=NUMBER, or a FILE.npy"
            )
    return values


def _constant(entry: Input) -> Any:
    try:
        return ast.literal_eval(str(entry.constant))
    except (ValueError, SyntaxError):
        raise SignatureError(
            f"{entry.path}={entry.constant} cannot be read back: use sparsify.load in Python"
        ) from None


def _value(signature: FolderSignature, name: str) -> tuple[tuple[int, ...], torch.dtype]:
    value = signature.values[name]
    # None is a size that is known once a mask is: inputs have none
    return tuple(size for size in value.shape if size is not None), getattr(torch, value.dtype)


def _tensor(pair: str, shape: tuple[int, ...]) -> Tensor:
    """Of ``name=value``: a number for all of ``shape``, or the array of a file."""
    _, _, text = pair.partition("=")
    if not text.endswith(".npy"):
        try:
            return torch.full(shape, float(text), dtype=torch.float64)
        except ValueError:
            raise SignatureError(f"{pair}: give a number or a file.npy") from None
    try:
        array = torch.from_numpy(np.load(text))
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise SignatureError(f"{pair} cannot be read: {error}: save it with numpy.save") from None
    if tuple(array.shape) != shape:
        raise SignatureError(
            f"{pair} is {list(array.shape)} but {list(shape)} was exported: save that shape"
        )
    return array


def _shown(output: Any) -> Tensor:
    """The first picture of the outputs."""
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor) and pictures.is_picture(tuple(leaf.shape)):
            return leaf
    raise SignatureError("no output is one picture of 1 or 3 channels: use sparsify.load in Python")
