"""Which rows of the remembered values an update reads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsify.codegen import ops
from torch.fx import Node


@dataclass(frozen=True)
class Read:
    """Rows of axis ``dim`` at the sites that some tables of the plan name."""

    dim: int
    tables: tuple[str, ...]

    def both(self, other: Read) -> Read | None:
        """What this and another graph read."""
        tables = tuple(dict.fromkeys((*self.tables, *other.tables)))
        return Read(self.dim, tables) if self.dim == other.dim else None


def find_read(value: Node, names: Mapping[Node, str]) -> Read | None:
    """What a graph reads of ``value``, a placeholder; None if it reads all. ``names`` are those of
    its tables."""
    dims, used = set(), dict[str, None]()
    for user in value.users:
        if user.target not in (ops.take_rows, ops.take) or user.args[0] is not value:
            return None
        table = _table(user.args[1])
        if table not in names:
            return None
        used[names[table]] = None
        dims.add(1 if user.target is ops.take_rows else user.args[2])
    if len(dims) != 1:
        return None
    (dim,) = dims
    assert isinstance(dim, int)
    return Read(dim, tuple(used))


def _table(sites: object) -> Node:
    """The table behind a node that only declares its size."""
    assert isinstance(sites, Node)
    return _table(sites.args[0]) if sites.target is ops.same_sites else sites
