"""Which rows of the recorded values an update reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsify.codegen import ops
from torch.fx import Node


@dataclass(frozen=True)
class Read:
    """Rows of axis ``dim`` at the sites that some tables of the plan name."""

    dim: int
    tables: tuple[int, ...]


def find_reads(values: Sequence[Node], tables: Sequence[Node]) -> tuple[Read | None, ...]:
    """For each recorded value, a placeholder of the update graph; None if it is read whole."""
    number = {table: index for index, table in enumerate(tables)}
    return tuple(_read(value, number) for value in values)


def _read(value: Node, number: dict[Node, int]) -> Read | None:
    dims, used = set(), set()
    for user in value.users:
        if user.target not in (ops.take_rows, ops.take) or user.args[0] is not value:
            return None
        table = _table(user.args[1])
        if table not in number:
            return None
        used.add(number[table])
        dims.add(1 if user.target is ops.take_rows else user.args[2])
    if len(dims) != 1:
        return None
    (dim,) = dims
    assert isinstance(dim, int)
    return Read(dim, tuple(sorted(used)))


def _table(sites: object) -> Node:
    """The table behind a node that only declares its size."""
    assert isinstance(sites, Node)
    return _table(sites.args[0]) if sites.target is ops.same_sites else sites
