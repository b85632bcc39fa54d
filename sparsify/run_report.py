"""What a sampling run computed: less by space, by time and by weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from .report import Report, big
from .schedule import Schedule
from .sidecar import NodeReport


@dataclass(frozen=True)
class StepReport:
    """One call of the model in a run."""

    step: int
    is_key: bool
    macs_dense: int
    """Multiply-accumulates of the model with all of its weights."""
    macs_now: int


@dataclass(frozen=True)
class RunReport:
    """Iterate over the steps, or print it with rich."""

    call: Report
    """Of one call, with the last plan: what space saves."""
    schedule: Schedule
    calls: tuple[tuple[int, bool], ...]
    """(step, is it a key step) of the last run's calls."""
    whole: frozenset[int] = frozenset()
    """The numbers of calls that computed all sites, whatever the plan: they told the mask."""
    skipped: frozenset[int] = frozenset()
    """Of those that gave what was recorded: before a late start, of an unchanged prompt."""

    def __iter__(self) -> Iterator[StepReport]:
        dense = self.call.macs_dense
        return (
            StepReport(step, is_key, dense, self._of_call(number, is_key, _now))
            for number, (step, is_key) in enumerate(self.calls)
        )

    @property
    def macs_dense(self) -> int:
        """Of the model at every step, with all of its weights."""
        return len(self.calls) * self.call.macs_dense

    @property
    def macs_space(self) -> int:
        """With what edits leave alone not computed, at every step."""
        calls = range(len(self.calls))
        return sum(self._of_call(number, True, _with_all_weights) for number in calls)

    @property
    def macs_time(self) -> int:
        """With what steps reuse not computed, at every site."""
        return sum(self._of_nodes(is_key, self.call.nodes, _dense) for _, is_key in self.calls)

    @property
    def macs_weights(self) -> int:
        """Of the weights that are kept, at every step and site."""
        return len(self.calls) * sum(node.macs_kept for node in self.call.nodes)

    @property
    def macs_now(self) -> int:
        """With none of this."""
        return sum(step.macs_now for step in self)

    @property
    def share_left(self) -> float:
        return self.macs_now / max(self.macs_dense, 1)

    def nodes(self) -> tuple[NodeReport, ...]:
        """The nodes with the MACs of all calls."""
        return tuple(
            replace(node, macs=node.macs * len(self.calls), macs_now=self._of_node(number))
            for number, node in enumerate(self.call.nodes)
        )

    @cached_property
    def _all_sites(self) -> tuple[NodeReport, ...]:
        return tuple(replace(node, macs_now=node.macs_kept) for node in self.call.nodes)

    def _of_node(self, number: int) -> int:
        calls = enumerate(self.calls)
        return sum(
            self._of_nodes(k, self._nodes(place)[number : number + 1], _now)
            for place, (_, k) in calls
        )

    def _of_call(self, number: int, is_key: bool, of: Callable[[NodeReport], int]) -> int:
        return self._of_nodes(is_key, self._nodes(number), of)

    def _nodes(self, number: int) -> tuple[NodeReport, ...]:
        """What a call computes of each node, if it is of a key step."""
        if number in self.skipped:
            return ()
        return self._all_sites if number in self.whole else self.call.nodes

    def _of_nodes(
        self, is_key: bool, nodes: Sequence[NodeReport], of: Callable[[NodeReport], int]
    ) -> int:
        if is_key:
            return sum(map(of, nodes))
        if self.schedule.part is None:
            return 0
        return sum(of(node) for node in nodes if not node.reused)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield str(self.schedule)
        table = Table(title="sparsify: what a run computes")
        table.add_column("saved by")
        table.add_column("MACs", justify="right")
        table.add_column("share of dense", justify="right")
        rows = {"nothing": self.macs_dense, "space": self.macs_space, "time": self.macs_time}
        rows |= {"weights": self.macs_weights, "all": self.macs_now}
        for name, macs in rows.items():
            table.add_row(name, big(macs), f"{macs / max(self.macs_dense, 1):.1%}")
        yield table


def _dense(node: NodeReport) -> int:
    return node.macs


def _now(node: NodeReport) -> int:
    return node.macs_now


def _with_all_weights(node: NodeReport) -> int:
    return round(node.macs_now / node.weights)
