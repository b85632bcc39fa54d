"""Baselines as safetensors files: tensors by name, and the rest as JSON among the metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils._pytree import TreeSpec, treespec_dumps, treespec_loads

from .baseline import Baseline, first_names, in_own_memory
from .codegen.errors import BaselineError
from .signature import Signature, described
from .state import Weights

VERSION = "1"


def save_baseline(baseline: Baseline, path: str | Path) -> None:
    """Writes ``baseline`` to a file that any process with the same model, or a folder exported from
    it, can update from.

    Values that share memory are written once. Raises :class:`BaselineError` for a call with
    arguments that are neither tensors nor numbers, strings, booleans or None.
    """
    values = baseline.fetched()
    first = first_names(values)
    same = {name: known for name, known in first.items() if name != known}
    tensors = {name: value for name, value in values.items() if name not in same}
    for kind, leaves in (("input", baseline.inputs), ("output", baseline.outputs)):
        tensors |= {f"{kind}.{i}": x for i, x in enumerate(leaves) if isinstance(x, Tensor)}
    if baseline.restricted_to is not None:
        tensors["mask"] = baseline.restricted_to
    about = {
        "version": VERSION,
        "key": baseline.key,
        "weights": baseline.weights.content,
        "spec": _spec(baseline.signature.spec),
        "device": str(_device(baseline)),
        "names": baseline.signature.names,
        "shape": baseline.shape,
        "inputs": _plain(baseline.signature.names, baseline.inputs),
        "outputs": _plain(None, baseline.outputs),
        "is_one_run": baseline.is_one_run,
        "is_forecast": baseline.is_forecast,
        "same": same,
    }
    own = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    save_file(in_own_memory(own), path, {"sparsify": json.dumps(about)})


def load_baseline(path: str | Path, device: torch.device | str | None = None) -> Baseline:
    """What :func:`save_baseline` wrote, with its tensors on ``device``, by default where they were.
    Nothing is unpickled.

    Raises :class:`BaselineError`.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["sparsify"])
        with safe_open(path, "pt", device=str(device or about["device"])) as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        is_known = about["version"] == VERSION
        baseline = _built(about, tensors) if is_known else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise BaselineError(f"{path} holds no baseline ({error}): save one again") from None
    if baseline is None:
        raise BaselineError(f"{path} was saved by another version of sparsify: record again")
    return baseline


def _spec(spec: TreeSpec) -> str:
    try:
        return treespec_dumps(spec)
    except NotImplementedError as error:
        raise BaselineError(f"no file can hold the arguments of this call: {error}") from None


def _device(baseline: Baseline) -> torch.device:
    """Where its tensors lie."""
    leaves = (*baseline.inputs, *baseline.outputs)
    return next((leaf.device for leaf in leaves if isinstance(leaf, Tensor)), torch.device("cpu"))


def _built(about: Mapping[str, Any], tensors: dict[str, Tensor]) -> Baseline:
    def leaves(kind: str) -> tuple[Any, ...]:
        plain = about[f"{kind}s"]
        return tuple(tensors.get(f"{kind}.{i}", leaf) for i, leaf in enumerate(plain))

    mask = tensors.pop("mask", None)
    inputs, outputs = leaves("input"), leaves("output")
    values = {n: t for n, t in tensors.items() if n.partition(".")[0] not in ("input", "output")}
    for name, first in about["same"].items():
        values[name] = values[first].detach()  # another tensor, of one memory
    spec = treespec_loads(about["spec"])
    batch, height, width = about["shape"]
    return Baseline(
        key=about["key"],
        weights=Weights(about["weights"], None),
        signature=Signature(spec, described(inputs), tuple(about["names"])),
        shape=(batch, height, width),
        values=values,
        outputs=outputs,
        inputs=inputs,
        origins=(None,) * len(inputs),
        is_one_run=about["is_one_run"],
        is_forecast=about["is_forecast"],
        restricted_to=None if mask is None else mask.cpu(),
    )


def _plain(names: Sequence[str] | None, leaves: Sequence[Any]) -> list[Any]:
    """The leaves that are no tensors, None in the places of those that are."""
    plain = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    for index, leaf in enumerate(plain):
        if leaf is not None and not isinstance(leaf, bool | int | float | str):
            what = f"the argument {names[index]}" if names else f"result {index}"
            raise BaselineError(f"{what} is a {type(leaf).__name__}, which no file can hold")
    return plain
