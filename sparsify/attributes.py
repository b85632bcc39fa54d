"""What capture may have read of a module tree: attributes, hooks, processors, training flags."""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from operator import is_, itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

_UNREAD = frozenset(  # by any forward, or changed only with what is read
    {
        "_backward_hooks",
        "_backward_pre_hooks",
        "_compiled_call_impl",
        "_forward_hooks_always_called",
        "_forward_hooks_with_kwargs",
        "_forward_pre_hooks_with_kwargs",
        "_is_full_backward_hook",
        "_is_torch_compile",
        "_load_state_dict_post_hooks",
        "_load_state_dict_pre_hooks",
        "_non_persistent_buffers_set",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
    }
)
_PLAIN: tuple[type, ...] = (dict, list, tuple, set, OrderedDict, deque)
"""Nothing but what they hold."""
_BY_VALUE = (
    *(int, str, bytes, frozenset, range, slice, types.MethodType),
    *(torch.Size, torch.dtype, torch.device),
)
_OPAQUE = {"torch", "logging", "threading", "weakref", __name__.partition(".")[0]}


class _Part(NamedTuple):
    """In place of an object, or of a tensor, that is described on its own."""

    number: int


class _TensorPart(NamedTuple):
    number: int


class _Record(NamedTuple):
    """What an object held: ``values`` under ``keys``. ``itself``, if it is more than these."""

    kind: type
    itself: Any
    keys: tuple[Any, ...]
    values: tuple[Any, ...]


class Attributes:
    """A snapshot of everything attached to ``model`` but the contents of tensors.

    Modules, containers and objects with attributes are walked; functions, and objects of torch's
    own and of libraries that make no pictures, are known by identity. :meth:`unchanged` compares
    identities, in loops of C; only where these differ are values compared, by :meth:`difference`.
    That takes 1.6 ms for Stable Diffusion 1.5's UNet (708 modules, 10,000 containers) and 0.05 ms
    for 21 modules; a new snapshot takes 80 ms and 1.5 ms (one core).
    """

    def __init__(self, model: nn.Module) -> None:
        self._weights = {id(t) for t in chain(model.parameters(), model.buffers())}
        self._numbers: dict[int, int] = {}
        self._objects: list[Any] = []
        self._paths: list[str] = []
        self._arrays: dict[int, int] = {}
        self._tensors: list[Tensor] = []
        self._found(model, "")
        self._records = [
            self._record(whole, path)  # which finds more
            for whole, path in zip(self._objects, self._paths, strict=False)
        ]
        walked = [whole for whole in self._objects if hasattr(whole, "__dict__")]
        dicts: list[dict[Any, Any]] = [whole.__dict__ for whole in walked]
        dicts += [whole for whole in self._objects if isinstance(whole, dict)]
        self._walked, self._types = walked, list(map(type, walked))
        self._others = [w for w in self._objects if isinstance(w, list | set | deque)]
        self._sized = [*dicts, *self._others]
        self._lengths = list(map(len, self._sized))
        # As many entries, and all known keys among them: so there are no others.
        self._getters = [(_getter(held), held) for held in dicts if held]
        self._values = [v for getter, held in self._getters for v in getter(held)]
        self._items = list(chain.from_iterable(self._others))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are neither parameters nor buffers of the model: constants to capture."""
        return tuple(self._tensors)

    def unchanged(self) -> bool:
        """Does everything hold the very objects that it held?"""
        try:
            return (
                list(map(len, self._sized)) == self._lengths
                and all(map(is_, map(type, self._walked), self._types))
                and all(map(is_, chain.from_iterable(self._held()), self._values))
                and all(map(is_, chain.from_iterable(self._others), self._items))
            )
        except (KeyError, RuntimeError):  # another thread changes a size meanwhile
            return False

    def _held(self) -> list[tuple[Any, ...]]:
        return [getter(held) for getter, held in self._getters]

    def difference(self, now: Attributes) -> str | None:
        """The first attribute that has another value ``now``; contents of tensors aside."""
        for path, old, new in zip(self._paths, self._records, now._records, strict=False):
            if old.kind is not new.kind or old.itself is not new.itself:
                return _shown(path)
            if old.keys != new.keys:
                odd = [k for k in (*old.keys, *new.keys) if k not in old.keys or k not in new.keys]
                return _shown(f"{path}.{odd[0]}" if odd else path)
            for index, (mine, other) in enumerate(zip(old.values, new.values, strict=False)):
                if not _same(mine, other):
                    if isinstance(mine, Tensor):
                        return "weights"
                    return _shown(f"{path}.{old.keys[index] if old.keys else index}")
            if len(old.values) != len(new.values):
                return _shown(path)
        return None

    def _record(self, whole: Any, path: str) -> _Record:
        kind = type(whole)
        itself = None if kind in _PLAIN or isinstance(whole, tuple) else whole
        if isinstance(whole, set):
            return _Record(kind, itself, (), (frozenset(whole),))
        held: list[tuple[Any, Any]] = []
        if hasattr(whole, "__dict__"):  # in an order that says nothing
            held += sorted(vars(whole).items(), key=lambda item: str(item[0]))
        if isinstance(whole, Mapping):
            held += whole.items()
        elif isinstance(whole, Iterable) and isinstance(whole, list | tuple | deque):
            held += enumerate(whole)
        if isinstance(whole, nn.Module):
            held = [(key, value) for key, value in held if key not in _UNREAD]
        values = [self._value(value, f"{path}.{key}") for key, value in held]
        return _Record(kind, itself, tuple(key for key, _ in held), tuple(values))

    def _value(self, value: Any, path: str) -> Any:
        """``value`` itself if nothing in it can change, or else its place."""
        if isinstance(value, Tensor):
            return value if id(value) in self._weights else self._tensor(value, value)
        if (array := _as_tensor(value)) is not None:
            return self._tensor(value, array)
        is_walked = type(value) in _PLAIN or isinstance(
            value, nn.Module | dict | list | tuple | deque
        )
        return self._found(value, path) if is_walked or _has_attributes(value) else value

    def _tensor(self, value: Any, tensor: Tensor) -> _TensorPart:
        if id(value) not in self._arrays:
            self._arrays[id(value)] = len(self._tensors)
            self._tensors.append(tensor)
        return _TensorPart(self._arrays[id(value)])

    def _found(self, whole: Any, path: str) -> _Part:
        if id(whole) not in self._numbers:
            self._numbers[id(whole)] = len(self._objects)
            self._objects.append(whole)
            self._paths.append(path)
        return _Part(self._numbers[id(whole)])


def _getter(held: dict[Any, Any]) -> Callable[[dict[Any, Any]], tuple[Any, ...]]:
    """What reads all values that a forward may read, at once."""
    keys = [key for key in held if key not in _UNREAD] or list(held)
    return itemgetter(*keys, keys[0])  # two or more, for which it gives a tuple


def _has_attributes(value: Any) -> bool:
    """Of its own, and such that a model may read."""
    if isinstance(value, type | types.FunctionType | types.ModuleType):
        return False
    return hasattr(value, "__dict__") and type(value).__module__.partition(".")[0] not in _OPAQUE


def _as_tensor(value: Any) -> Tensor | None:
    """A NumPy array's memory, if torch has its dtype."""
    if type(value).__module__ != "numpy" or not hasattr(value, "__array_interface__"):
        return None
    try:
        return torch.from_numpy(value)
    except (TypeError, ValueError):
        return None


def _same(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, float | complex):  # -0.0 is not 0.0, and nan is nan
        return repr(old) == repr(new)
    return isinstance(old, (*_BY_VALUE, _Part, _TensorPart)) and bool(old == new)


def _shown(path: str) -> str:
    """As the user writes it."""
    for name in ("._modules", "._parameters", "._buffers"):
        path = path.replace(name, "")
    return path.removeprefix(".")
