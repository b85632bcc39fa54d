"""A model whose weights are sparse, and dense again when wanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..codegen.errors import ConfigError
from ..codegen.nm.pattern import DENSE, NM
from . import layers
from .batch import Batch
from .masked import Masked
from .search import CHOICES, Found, search


class SparseWeights:
    """Masks over the weights of ``model``: of each ``m`` consecutive inputs of a linear layer or a
    convolution (there for each tap) the ``n`` largest weights are kept, and ``v`` consecutive
    outputs share the choice.

    The dense weights stay the model's parameters, and masks follow from them at every call, so
    training, :meth:`use` and :meth:`dense` lose nothing. In training gradients go straight through,
    and weights that are not kept decay by ``decay``.

    Layers stay dense if they are the first, the last, embeddings or skip connections, or if ``m``
    does not divide their inputs or ``v`` their outputs. :attr:`refused` says which, and why.
    ``include`` and ``exclude`` choose by name instead, with patterns as for files. With ``pad``
    zeros fill up the last group.

    >>> weights = SparseWeights(unet, n=2, m=4)
    >>> weights.use(1, 4, layers="mid_block.*")
    >>> weights.dense()

    Raises :class:`ConfigError` if no layer can be sparse, or one cannot that ``include`` names.
    """

    def __init__(
        self,
        model: nn.Module,
        n: int = 2,
        m: int = 4,
        v: int = 1,
        *,
        include: str | Sequence[str] = (),
        exclude: str | Sequence[str] = (),
        pad: bool = False,
        decay: float = 2e-4,
    ) -> None:
        pattern, asked = NM.of(n, m, v), layers.several(include)
        self.model, self.pad, self.v = model, pad, v
        self._chosen, self._never = layers.split(model, asked, layers.several(exclude))
        self._misfits: dict[str, str] = {}
        self._masks = {name: Masked(decay) for name in self._chosen}
        self._set(pattern, self._named(asked or None, "include"), is_asked=bool(asked))
        if not self.layers:
            why = Counter(self.refused.values()).most_common(3)
            found = "; ".join(f"{reason} ({count})" for reason, count in why)
            raise ConfigError(
                f"no layer of {type(model).__name__} can be {pattern}: {found or 'it has none'}. "
                "Give other numbers, pad=True, or name layers by include="
            )
        for name, layer in self._chosen.items():
            parametrize.register_parametrization(layer.module, "weight", self._masks[name])

    def __repr__(self) -> str:
        kinds = Counter(map(str, self.layers.values()))
        shown = ", ".join(f"{count} layers {kind}" for kind, count in kinds.items())
        return f"<SparseWeights of {type(self.model).__name__}: {shown or 'dense'}>"

    @property
    def layers(self) -> dict[str, NM]:
        """The layers that are sparse now, by name. :meth:`apply` takes it."""
        return {n: mask.pattern for n, mask in self._masks.items() if not mask.pattern.is_dense}

    @property
    def refused(self) -> dict[str, str]:
        """Why a layer is dense though it was not asked to be, by name."""
        return {**self._never, **self._misfits}

    @property
    def candidates(self) -> tuple[str, ...]:
        """The layers that have a mask, also where it keeps everything."""
        return tuple(self._masks)

    def use(
        self,
        n: int,
        m: int,
        *,
        v: int | None = None,
        layers: str | Sequence[str] | None = None,
    ) -> None:
        """Takes another pattern, of the same dense weights; ``v`` as at first, if it is not given.

        Without ``layers`` all that can; the others are dense, and :attr:`refused` says why. Raises
        :class:`ConfigError` for layers that are named and cannot.
        """
        pattern = NM.of(n, m, self.v if v is None else v)
        self._set(pattern, self._named(layers), is_asked=layers is not None)

    def dense(self, layers: str | Sequence[str] | None = None) -> None:
        """Takes the dense weights, bit for bit."""
        self._set(DENSE, self._named(layers))

    def apply(self, patterns: Mapping[str, NM]) -> None:
        """Takes the :attr:`layers` of some other time, or of a copy; all others are dense.

        Raises :class:`ConfigError` for a layer that there is not, or that cannot.
        """
        checked = {name: NM.of(*pattern) for name, pattern in patterns.items()}
        for name, pattern in checked.items():
            if name not in self._masks:
                raise ConfigError(f"{name!r}: {self._nothing(name)}")
            self._require_fit(pattern, [name])
        self.dense()
        for name, pattern in checked.items():
            self._masks[name].pattern = pattern

    def fits(self, name: str, pattern: NM) -> bool:
        """Can this layer have this pattern?"""
        return not self._unfit(pattern, [name])

    def search(
        self,
        budget: float,
        inputs: Sequence[Batch],
        *,
        choices: Sequence[NM] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Found:
        """Takes for each layer dense weights or one of ``choices``, so that ``budget``, a number of
        0 to 1, of the MACs of all linear layers and convolutions are left. Choices are 3:4, 2:4 and
        1:4, with the ``v`` of the beginning, if none are given.

        Each choice of each layer is measured alone, by the error of the model's output on
        ``inputs``; errors are taken to add up. From all dense on, the move is made that adds the
        least error for each MAC that it saves, until the budget is met. ``progress`` hears how many
        measurements are done, and of how many. The model should be in evaluation mode.

        Raises :class:`ConfigError` for a budget that cannot be met; patterns then stay as they are.
        """
        if choices is None:
            choices = [choice._replace(v=self.v) for choice in CHOICES]
        return search(self, budget, inputs, choices, progress)

    def remove(self, bake: bool = False) -> None:
        """Makes the layers plain ones again, with the dense weights; with ``bake`` with the sparse
        ones, for good. This object has no layers then."""
        for layer in self._chosen.values():
            # Torch removes the property from the class, which copies of the module share.
            layer.module.__class__ = _own(type(layer.module))
            parametrize.remove_parametrizations(layer.module, "weight", leave_parametrized=bake)
            held = layer.module._parameters
            held.update([(name, held.pop(name)) for name in layer.order])
        self._chosen, self._masks, self._misfits = {}, {}, {}

    def _set(self, pattern: NM, names: Sequence[str], is_asked: bool = False) -> None:
        """Raises :class:`ConfigError` for layers that cannot, if they were asked for by name."""
        if is_asked:
            self._require_fit(pattern, names)
        misfits = self._unfit(pattern, names)
        for name in names:
            self._masks[name].pattern = DENSE if name in misfits else pattern
            self._misfits.pop(name, None)
        self._misfits |= misfits

    def _named(
        self, patterns: str | Sequence[str] | None, argument: str = "layers"
    ) -> tuple[str, ...]:
        """Raises :class:`ConfigError` for a pattern that names no layer that can be sparse."""
        if patterns is None:
            return self.candidates
        asked = layers.several(patterns)
        for one in asked:
            if not any(layers.matches(name, [one]) for name in self._masks):
                raise ConfigError(f"{argument}={one!r}: {self._nothing(one)}")
        return tuple(name for name in self._masks if layers.matches(name, asked))

    def _nothing(self, pattern: str) -> str:
        """What to say of a pattern without layers."""
        refused = ((n, why) for n, why in self._never.items() if layers.matches(n, [pattern]))
        if found := next(refused, None):
            return f"{found[0]} stays dense: {found[1]}"
        return "no linear layer or convolution has this name; weights.candidates lists them"

    def _unfit(self, pattern: NM, names: Sequence[str]) -> dict[str, str]:
        why = {name: self._chosen[name].misfit(pattern, self.pad) for name in names}
        return {name: reason for name, reason in why.items() if reason is not None}

    def _require_fit(self, pattern: NM, names: Sequence[str]) -> None:
        """Raises :class:`ConfigError` if the weight of a layer cannot have this ``pattern``."""
        if unfit := self._unfit(pattern, names):
            name, reason = next(iter(unfit.items()))
            more = f"; {len(unfit) - 1} more layers cannot" if len(unfit) > 1 else ""
            raise ConfigError(f"{name} cannot be {pattern}: {reason}{more}. Or leave it out")


def _own(kind: Any) -> Any:
    """A class like ``kind`` that nobody else has."""
    held = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    return type(kind)(kind.__name__, kind.__bases__, held)
