"""Which entry of a value belongs to which site: found by trying, without the compiler's analysis.

The operands of every node are changed at some sites, the operator is run again, and the entries of
its result that change with one site alone belong to that site.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from sparsify.codegen import norms, ops
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_map_only

from tests.steps import Pair

aten = torch.ops.aten
BESIDE, SEVERAL = -1, -2


@dataclass(frozen=True)
class Arrangement:
    """``sites`` has the shape of the value: for each entry a site of ``grid``, row by row;
    ``BESIDE`` for what belongs to none (text among the tokens)."""

    sites: Tensor
    grid: Pair

    @staticmethod
    def image(shape: tuple[int, ...]) -> Arrangement | None:
        """[..., H, W]; one row or column is no picture."""
        grid = (shape[-2], shape[-1])
        if min(grid) < 2:
            return None
        return Arrangement(torch.arange(prod(grid)).view(grid).expand(shape), grid)

    @property
    def is_image(self) -> bool:
        shape = tuple(self.sites.shape)
        if len(shape) < 3 or shape[-2:] != self.grid:
            return False
        return torch.equal(self.sites, torch.arange(prod(self.grid)).view(self.grid).expand(shape))

    def active(self, mask: Tensor) -> Tensor:
        """The entries that an update with ``mask`` [H, W] computes."""
        return mask.flatten()[self.sites.clamp(min=0)] | (self.sites == BESIDE)


_MOVES = (aten.roll.default, aten.flip.default, aten.slice.Tensor, aten.cat.default)


def is_move(node: Node, found: dict[Node, Arrangement]) -> bool:
    """Does it put rows and columns of pictures [N, C, H, W] in other places?"""
    sources = [arg for arg in node.all_input_nodes if arg in found]
    if node.target not in _MOVES or not sources or len(shape := node.meta["val"].shape) != 4:
        return False
    at = 1 if node.target in (aten.flip.default, aten.slice.Tensor, aten.cat.default) else 2
    given: Any = node.args[at] if len(node.args) > at else 0
    dims = [dim % 4 for dim in (given if isinstance(given, list | tuple) else [given])]
    if not all(found[arg].is_image for arg in sources) or min(dims) < 2:
        return False
    if node.target is not aten.slice.Tensor:
        return True
    start, step = node.args[2] or 0, node.args[4] if len(node.args) > 4 else 1
    size = sources[0].meta["val"].shape[dims[0]]
    covers = 0 <= start < step and shape[dims[0]] == -((start - size) // step)  # type: ignore
    return tuple(shape) != tuple(sources[0].meta["val"].shape) and not covers


class Arrangements(Interpreter):
    """A run of a graph on a picture (and others); then ``found`` has the arrangement of every
    value that the picture reaches, site by site."""

    def __init__(self, module: GraphModule, picture: Node) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.found: dict[Node, Arrangement] = {}
        self._picture = picture

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        arrangement = None
        if n is self._picture:
            arrangement = Arrangement.image(tuple(value.shape))
        elif n.target is norms.group_norm or n.target is operator.getitem:
            # The result of a norm lies as its operand does; its statistics lie nowhere.
            arrangement = self.found.get(n.all_input_nodes[0]) if n.args[1:2] != (1,) else None
        elif isinstance(value, Tensor) and any(arg in self.found for arg in n.all_input_nodes):
            arrangement = self._arrangement(n, value)
        if arrangement is not None:
            self.found[n] = arrangement
        return value

    def _arrangement(self, n: Node, value: Tensor) -> Arrangement | None:
        if n.target is aten.im2col.default:
            return _blocks(n, value)
        if is_move(n, self.found):
            grid = (value.shape[-2], value.shape[-1])
            return Arrangement(torch.arange(prod(grid)).view(grid).expand(value.shape), grid)
        samples = n.target is aten.grid_sampler.default and n.args[1] not in self.found
        if samples or n.target in (ops.shuffle, ops.unshuffle):
            return Arrangement.image(tuple(value.shape))
        sources = [arg for arg in n.all_input_nodes if arg in self.found]
        probed = [(self.found[source], self._probe(n, source)) for source in sources]
        pure = [(a, s) for a, s in probed if not (s == SEVERAL).any() and (s != BESIDE).any()]
        first = probed[0][0]
        if pure:
            # Of a product of two such factors, the rows count: those of the first.
            grid = pure[0][0].grid
            sites = pure[0][1]
            for own, others in pure[1:]:
                sites = torch.where(sites == BESIDE, others, sites) if own.grid == grid else sites
            sites = _filled(sites)
            if not pure[0][0].is_image or _each_once(sites, grid):
                return Arrangement(sites, grid)
        # A picture made of several sites of one, or of some of them, is a picture of its own.
        same_rank = first.is_image and value.dim() == first.sites.dim()
        return Arrangement.image(tuple(value.shape)) if same_rank else None

    def _probe(self, n: Node, source: Node) -> Tensor:
        """The site of ``source`` that each entry of the result depends on, digit by digit."""
        arrangement, old = self.found[source], self.env[source]
        run = _traceable(n)

        def result_of(x: Tensor) -> Tensor:
            args, kwargs = tree_map_only(
                Node, lambda arg: x if arg is source else self.env[arg], (n.args, n.kwargs)
            )
            return run(*args, **kwargs)

        base = result_of(old)
        sites = torch.zeros(base.shape, dtype=torch.long)
        one, zero = (torch.zeros(base.shape, dtype=torch.bool) for _ in range(2))
        several = zero.clone()

        def changed(inside: Tensor) -> Tensor:
            result = result_of(torch.where(inside, _other(old), old))
            # Not by comparison: a product in another order rounds otherwise.
            return result.isnan() if old.is_floating_point() or old.is_complex() else result != base

        for digit in range(max(1, (prod(arrangement.grid) - 1).bit_length())):
            has = (arrangement.sites >> digit) % 2 == 1
            known = arrangement.sites != BESIDE
            one, zero = changed(has & known), changed(~has & known)
            several |= one & zero
            sites += one.long() << digit
        return sites.masked_fill(~(one | zero), BESIDE).masked_fill(several, SEVERAL)


def _traceable(n: Node) -> Callable[..., Tensor]:
    """The operator, or one whose results are numbers that say as much about what it reads."""
    target: Any = n.target
    if target in (aten.argmin.default, aten.argmax.default):
        return aten.amin.default
    if target is aten.scaled_dot_product_attention.default:
        return lambda q, k, v, *_, **__: (q @ k.transpose(-1, -2)) @ v
    truth = n.meta["val"].dtype == torch.bool
    if truth and torch.Tag.pointwise in getattr(target, "tags", ()):
        return lambda *args: sum(_numbers(args))
    if n.op == "call_method":
        return getattr(Tensor, target)
    return target


def _numbers(args: tuple[Any, ...]) -> Iterator[Tensor]:
    return (arg.double() for arg in args if isinstance(arg, Tensor))


def _other(old: Tensor) -> Tensor:
    """Nothing that reads it can overlook it: not a number, or another of the first two."""
    if old.is_floating_point() or old.is_complex():
        return torch.full_like(old, torch.nan)
    return ~old if old.dtype == torch.bool else 1 - (old > 0).to(old.dtype)


def _filled(sites: Tensor) -> Tensor:
    """Along an axis of one site each, what is constant belongs to that site too: channels that
    no edit reaches, beside others."""
    for dim in range(sites.dim()):
        site = sites.amax(dim, keepdim=True)
        if ((sites == site) | (sites == BESIDE)).all():
            sites = site.expand_as(sites)
    return sites


def _each_once(sites: Tensor, grid: Pair) -> bool:
    """Along the axes where the site changes, every site stands once."""
    for dim in range(sites.dim()):
        first = sites.narrow(dim, 0, 1)
        sites = first if torch.equal(first.expand_as(sites), sites) else sites
    return torch.equal(sites.flatten().sort().values, torch.arange(prod(grid)))


def _blocks(n: Node, value: Tensor) -> Arrangement:
    """[N, C * taps, H' * W']: the columns of a convolution."""
    _, kernel, dilation, padding, stride = n.args
    height, width = n.all_input_nodes[0].meta["val"].shape[-2:]
    rows, columns = (
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, d, p, s in zip((height, width), kernel, dilation, padding, stride, strict=True)
    )
    return Arrangement(torch.arange(rows * columns).expand(value.shape), (rows, columns))
