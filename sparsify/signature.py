"""What a call looks like: the part of its inputs that a captured graph depends on."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, keystr, tree_flatten_with_path, tree_map, tree_unflatten

from .codegen.errors import SignatureError


@dataclass(frozen=True)
class Signature:
    """Structure of the inputs; shape, dtype and device of tensors; the value of anything else."""

    spec: TreeSpec
    leaves: tuple[Any, ...]
    names: tuple[str, ...]

    def __hash__(self) -> int:
        return hash(self.leaves)

    def require(self, other: Signature, what: str) -> None:
        """Raises :class:`SignatureError`, naming the first argument of ``other`` that differs."""
        if self.names != other.names or self.spec != other.spec:
            ours, theirs = set(self.names), set(other.names)
            odd = ", ".join(sorted(ours ^ theirs)) or "the containers"
            raise SignatureError(f"{what}: the arguments differ from the recorded ones ({odd})")
        for name, mine, new in zip(self.names, self.leaves, other.leaves, strict=True):
            if mine != new:
                raise SignatureError(
                    f"{what}: {name} is {_show(new)} but {_show(mine)} was recorded: "
                    "record again with these inputs"
                )


@dataclass(frozen=True)
class Call:
    """Inputs bound to the parameters of ``forward``, flattened."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaves: tuple[Any, ...]
    signature: Signature
    what: str = "update"
    """In messages."""

    def of(self, leaves: Sequence[Any]) -> Call:
        """The same call with these leaves."""
        args, kwargs = tree_unflatten(leaves, self.signature.spec)
        signature = replace(self.signature, leaves=described(tuple(leaves)))
        return Call(args, kwargs, tuple(leaves), signature, self.what)

    def like(self, signature: Signature) -> Call:
        """As graphs of ``signature`` take it: with tensors for numbers, if they do."""
        tensors = self.with_tensors
        return tensors if tensors.signature == signature else self

    @cached_property
    def with_tensors(self) -> Call:
        """The same with a tensor for each number, beside the first tensor; itself without any."""
        device = next((leaf.device for leaf in self.leaves if isinstance(leaf, Tensor)), None)
        if not any(map(is_number, self.leaves)):
            return self
        leaves = tuple(as_tensor(x, device) if is_number(x) else x for x in self.leaves)
        return self.of(leaves)


def bind(model: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Binds and flattens, so that ``f(x, t)`` and ``f(x, t=t)`` are one call."""
    name = f"{type(model).__name__}.forward"
    return bind_to(inspect.signature(model.forward), name, args, kwargs)


def bind_to(
    parameters: inspect.Signature, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Call:
    """:func:`bind` for a function ``name`` with these ``parameters``."""
    try:
        bound = parameters.bind(*args, **kwargs)
    except TypeError as error:
        raise SignatureError(f"{name}: {error}") from None
    args, kwargs = tree_map(_given, (_ordered(bound.args), _ordered(bound.kwargs)))
    pairs, spec = tree_flatten_with_path((args, kwargs))
    order = [p for p in parameters.parameters]
    names = tuple(_name(path, order) for path, _ in pairs)
    leaves = tuple(leaf for _, leaf in pairs)
    return Call(args, kwargs, leaves, Signature(spec, described(leaves), names))


def is_number(leaf: Any) -> bool:
    """A number to count or to measure with: no boolean."""
    return type(leaf) in (int, float)


def as_tensor(number: float, device: torch.device | None) -> Tensor:
    """Without axes, so that no result takes its dtype where it would not take the number's."""
    dtype = torch.int64 if isinstance(number, int) else torch.float64
    return torch.tensor(number, dtype=dtype, device=device)


def _given(leaf: Any) -> Any:
    """A generator is no input: another one may stand in its place at each call, as pipelines hand
    theirs to a decoder that draws nothing."""
    return None if isinstance(leaf, torch.Generator) else leaf


def _ordered(tree: Any) -> Any:
    """``tree`` with its dicts sorted by key, where keys can be: their order means nothing."""
    if type(tree) in (tuple, list):
        return type(tree)(map(_ordered, tree))
    if type(tree) is not dict:
        return tree
    try:
        pairs = sorted(tree.items(), key=lambda pair: pair[0])
    except TypeError:
        pairs = list(tree.items())
    return {key: _ordered(value) for key, value in pairs}


def _name(path: Any, parameters: list[str]) -> str:
    """``sample`` or ``added_cond_kwargs['time_ids']``."""
    (side, first, *rest) = path
    positional = side.idx == 0
    root = parameters[first.idx] if positional and first.idx < len(parameters) else keystr((first,))
    return root.strip("[]'") + keystr(tuple(rest))


def described(leaves: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a signature says of leaves."""
    return tuple(map(_describe, leaves))


def _describe(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return tuple(leaf.shape), leaf.dtype, leaf.device
    return type(leaf).__name__, leaf if leaf.__hash__ else repr(leaf)


def _show(description: Any) -> str:
    if len(description) == 3:
        shape, dtype, device = description
        return f"{dtype} {list(shape)} on {device}"
    return repr(description[1])
