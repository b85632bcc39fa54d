"""Sampling by a schedule: key steps call the model, the others take what is forecast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from .forecast import Forecaster
from .signature import Call


class Sampling(Forecaster):
    """The mode of a module inside ``sampling(schedule)``."""

    _spec: TreeSpec

    def call(self, call: Call, dense: Callable[[], Any]) -> Any:
        place = self.tick(call)
        leaves = self.forecast_at(place, call)
        if leaves is not None:
            return tree_unflatten(leaves, self._spec)
        output = dense()
        leaves, self._spec = tree_flatten(output)
        self.keep(place, call, leaves)
        return output
