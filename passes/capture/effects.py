"""What a call of a model changes besides its result: tables kept for later calls, or state."""

from __future__ import annotations

import inspect
import random
import sys
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any

import torch
from sparsify.codegen.errors import CaptureError
from torch import Tensor, nn
from torch.utils._pytree import (
    MappingKey,
    keystr,
    tree_flatten_with_path,
    tree_leaves,
    tree_map_only,
)


def warm_up(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[int]:
    """Calls the model, which fills the tables that it keeps from then on. Returns the identities of
    tensors that every call sets again before it reads them: no graph depends on their values.

    What a second, equal call changes again is state, which no graph keeps: raises
    :class:`CaptureError`, which names it, and puts everything back.
    """
    before = Snapshot(model)
    try:
        output = _called(model, args, kwargs)
        after = Snapshot(model)
        if (kept := before.differs(after)) is None:
            return frozenset()
        again = _called(model, args, kwargs)
        last = Snapshot(model)
        if (state := after.differs(last)) is not None:
            raise CaptureError(
                f"{type(model).__name__} changes {state} at every call, which a captured graph "
                "cannot: pass it as an input, or change it outside of forward"
            )
        if not agree(output, again):
            raise CaptureError(
                f"{type(model).__name__} gives another output at a second, equal call, since the "
                f"first one set {kept}: reset what it keeps from call to call"
            )
    except Exception:
        before.restore()
        raise
    return frozenset(map(id, last.tensors)) - frozenset(map(id, after.tensors))


def _called(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A model may write to its inputs: it gets copies. Each call draws the same numbers.

    Raises :class:`CaptureError` for what is put into a container that is an input.
    """
    own = tree_map_only(Tensor, torch.clone, (args, kwargs))
    before = dict(tree_flatten_with_path(own)[0])
    with forked_generators(own):
        output = model(*own[0], **own[1])
    after = dict(tree_flatten_with_path(own)[0])
    for path in {**before, **after}:
        if before.get(path, _ABSENT) is not after.get(path, _ABSENT):
            raise CaptureError(
                f"{type(model).__name__} sets {_named(model, *path[1:])}, which its caller gave "
                "it and a captured graph cannot: have it return what is new"
            )
    return output


def _named(model: nn.Module, argument: Any, *place: Any) -> str:
    """A place in an argument, which was given by keyword or position."""
    names = list(inspect.signature(model.forward).parameters)
    is_named = isinstance(argument, MappingKey)
    name = argument.key if is_named else names[min(argument.idx, len(names) - 1)]
    return f"{name}{keystr(place)}"


@contextmanager
def forked_generators(inputs: Any) -> Iterator[None]:
    """Puts the generators of torch, NumPy and Python back where they were."""
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    devices = sorted({t.device.index for t in tensors if t.is_cuda})
    numpy, own = sys.modules.get("numpy"), random.getstate()
    theirs = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(own)
        if numpy:
            numpy.random.set_state(theirs)


def agree(output: Any, other: Any) -> bool:
    """Equal but for rounding, which leaves at least half of the digits."""
    mine, theirs = tree_leaves(output), tree_leaves(other)
    return len(mine) == len(theirs) and all(map(_agree, mine, theirs))


def _agree(a: Any, b: Any) -> bool:
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
        return type(a) is type(b) and bool(a == b)
    if _kind(a) != _kind(b) or not a.is_floating_point() or not a.numel() or a.is_meta:
        return _equal(a, b)
    scale = a.nan_to_num(0.0, 0.0, 0.0).abs().max().item()
    allowed = scale * torch.finfo(a.dtype).eps ** 0.5
    return torch.allclose(a, b, rtol=0.0, atol=allowed, equal_nan=True)


_ABSENT = object()


class Snapshot:
    """All that is attached to a model: attributes, and what is in containers and objects there.

    Parameters are known by their versions, other tensors by their values.
    """

    def __init__(self, model: nn.Module) -> None:
        self._leaves: dict[str, Any] = {}
        self._places: list[tuple[Any, Any]] = []
        """A container and a copy of it."""
        self._written: list[tuple[Tensor, Tensor]] = []
        """A tensor and a copy of it."""
        self._seen: dict[int, Any] = {}  # keeps them alive: no identity is given again
        for name, part in model.named_modules():
            self._visit(name, part)

    @property
    def tensors(self) -> list[Tensor]:
        """All that was found."""
        return [leaf[0] for leaf in self._leaves.values() if isinstance(leaf, tuple)]

    def differs(self, later: Snapshot) -> str | None:
        """The name of something that is another one later."""
        ours, theirs = self._leaves, later._leaves
        for path in {**theirs, **ours}:
            if not _same(ours.get(path, _ABSENT), theirs.get(path, _ABSENT)):
                return path.lstrip(".")
        return None

    def restore(self) -> None:
        """Puts back everything but writes to parameters."""
        for place, copy in self._places:
            if isinstance(place, dict):
                for key in place.keys() - copy.keys():
                    del place[key]
                place.update((k, v) for k, v in copy.items() if place.get(k, _ABSENT) is not v)
            elif isinstance(place, set):
                place.intersection_update(copy)
                place.update(copy)
            elif list(map(id, place)) != list(map(id, copy)):
                place.clear()
                place.extend(copy)
        for tensor, copy in self._written:
            if not _equal(tensor, copy):
                tensor.copy_(copy)

    def _visit(self, path: str, value: Any) -> None:
        if isinstance(value, Tensor):
            self._leaves[path] = self._tensor(value)
            return
        parts = _parts(value)
        if parts is None:
            self._leaves[path] = value.tobytes() if hasattr(value, "tobytes") else value
            return
        self._leaves[path] = type(value)
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if not isinstance(parts, tuple | frozenset):
            self._places.append((parts, parts.copy()))
        is_attribute = parts is not value
        for key, part in _items(parts):
            inner = is_attribute and key in ("_parameters", "_buffers", "_modules")
            if inner and isinstance(value, nn.Module):
                self._registered(path, part)
            else:
                self._visit(f"{path}.{key}" if is_attribute else f"{path}[{key!r}]", part)

    def _registered(self, path: str, parts: dict[str, Any]) -> None:
        """Parameters, buffers or modules: attributes as others are."""
        self._places.append((parts, parts.copy()))
        for key, part in parts.items():
            if not isinstance(part, nn.Module):
                self._visit(f"{path}.{key}", part)

    def _tensor(self, tensor: Tensor) -> tuple[Tensor, Any]:
        if isinstance(tensor, nn.Parameter):
            return tensor, 0 if tensor.is_inference() else tensor._version
        copy = tensor.detach().clone()
        self._written.append((tensor.detach(), copy))
        return tensor, copy


def _parts(value: Any) -> Any:
    """The container that ``value`` is or the attributes that it has; None if it is whole."""
    if isinstance(value, dict | list | set | deque | tuple | frozenset):
        return value
    origin = type(value).__module__.partition(".")[0]
    if isinstance(value, type) or origin in sys.stdlib_module_names:
        return None
    is_of_torch = origin == "torch" and not isinstance(value, nn.Module)
    return None if is_of_torch else getattr(value, "__dict__", None)


def _items(parts: Any) -> list[tuple[Any, Any]]:
    if isinstance(parts, dict):
        return list(parts.items())
    return [(part, part) for part in parts] if isinstance(parts, set) else list(enumerate(parts))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple) and isinstance(b, tuple):
        (mine, before), (theirs, after) = a, b
        if isinstance(before, Tensor) and isinstance(after, Tensor):
            return _equal(before, after)
        return mine is theirs and bool(before == after)
    if a is b or type(a) is not type(b):
        return a is b
    return isinstance(a, FunctionType | MethodType) or bool(a == b)


def _equal(a: Tensor, b: Tensor) -> bool:
    """In every value, where there are any; NaN is itself."""
    if _kind(a) != _kind(b) or a.is_meta:
        return _kind(a) == _kind(b)
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.device
