"""What the compiler made of a model, node by node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from PIL import Image, ImageDraw
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor

from .passes.fuse import Fused
from .passes.layout import Grid
from .plan import Tables
from .sidecar import NodeReport, Sidecar, State
from .words import size_of


@dataclass(frozen=True)
class Report:
    """Iterate over the nodes, print it with rich, or save a picture of the masks."""

    nodes: tuple[NodeReport, ...]
    masks: Mapping[Grid, Tensor]
    """The active mask, bool [H, W] or [N, H, W], of each grid; the widest of those that MACs go
    by."""
    is_dense: bool = False
    """The edit is so large that the dense model runs."""
    fused: tuple[Fused, ...] = ()
    """Where there are custom kernels: what each does besides, and why not more."""

    def __iter__(self) -> Iterator[NodeReport]:
        return iter(self.nodes)

    @property
    def macs_dense(self) -> int:
        """Of the model with all of its weights."""
        return sum(node.macs for node in self.nodes)

    @property
    def macs_update(self) -> int:
        """Of the weights that are kept."""
        return sum(node.macs_now for node in self.nodes)

    @property
    def share_left(self) -> float:
        """MACs of the update over those of the dense model."""
        return self.macs_update / max(self.macs_dense, 1)

    @property
    def kept(self) -> int:
        """Bytes of the nodes' values in the last baseline."""
        return sum(node.kept for node in self.nodes)

    def share(self, state: State) -> float:
        """Share of the dense MACs in nodes of one state."""
        return sum(n.macs for n in self.nodes if n.state == state) / max(self.macs_dense, 1)

    @property
    def fallbacks(self) -> tuple[NodeReport, ...]:
        return tuple(node for node in self.nodes if node.state == "fallback")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.summary()
        yield self.table()
        if self.fused:
            yield self.kernels()

    def summary(self) -> Table:
        """Nodes and MACs by state."""
        what = (
            "the dense model, for so large an edit" if self.is_dense else "what an update computes"
        )
        table = Table(title=f"sparsify: {what}")
        for column in ("state", "nodes", "MACs dense", "MACs now", "share of dense", "kept"):
            table.add_column(column, justify="left" if column == "state" else "right")
        count = Counter(node.state for node in self.nodes)
        for state in get_args(State):
            of_state = [node for node in self.nodes if node.state == state]
            dense, now = sum(n.macs for n in of_state), sum(n.macs_now for n in of_state)
            share = f"{now / max(self.macs_dense, 1):.1%}"
            kept = size_of(sum(n.kept for n in of_state))
            table.add_row(state, str(count[state]), big(dense), big(now), share, kept)
        share = f"{self.share_left:.1%}"
        table.add_section()
        totals = (big(self.macs_dense), big(self.macs_update))
        table.add_row("all", str(len(self.nodes)), *totals, share, size_of(self.kept))
        return table

    def table(self, least: float = 0.005) -> Table:
        """The nodes with at least this share of the MACs, and every fallback."""
        table = Table(title=f"nodes with {least:.1%} of the MACs or more, and fallbacks")
        for column in ("node", "operator", "grid", "state", "MACs dense", "now", "kept", "reason"):
            table.add_column(column)
        for n in self.nodes:
            if n.state == "fallback" or n.macs >= least * self.macs_dense > 0:
                grid = f"{n.grid[0]}x{n.grid[1]}" if n.grid else ""
                numbers = (big(n.macs), big(n.macs_now), size_of(n.kept) if n.kept else "")
                table.add_row(n.name, n.operator, grid, n.state, *numbers, n.reason)
        return table

    def kernels(self) -> Table:
        """The update's operators with custom kernels, alike ones in one row."""
        table = Table(title="kernels: what is done in one pass over memory")
        for column in ("operator", "with", "nodes", "left out", "first"):
            table.add_column(column)
        first: dict[Any, str] = {}
        for kernel in self.fused:
            first.setdefault((kernel.operator, kernel.parts, kernel.left), kernel.name)
        count = Counter((kernel.operator, kernel.parts, kernel.left) for kernel in self.fused)
        for kind, number in count.most_common():
            operator, parts, left = kind
            table.add_row(operator, ", ".join(parts), str(number), left, first[kind])
        return table

    def picture(self, path: str | Path, size: int = 160) -> None:
        """Saves a PNG of the active mask of every grid, finest first; of all items in one."""
        grids = sorted(self.masks, key=lambda grid: -grid[0] * grid[1])
        sheet = Image.new("RGB", (len(grids) * (size + 8) + 8, size + 32), "white")
        draw = ImageDraw.Draw(sheet)
        for index, grid in enumerate(grids):
            mask, left = self.masks[grid].view(-1, *grid).any(0), 8 + index * (size + 8)
            tile = Image.fromarray(mask.cpu().numpy()).convert("L").resize((size, size), 0)
            sheet.paste(Image.new("RGB", (size, size), "#20304a"), (left, 24))
            sheet.paste(Image.new("RGB", (size, size), "#ffb000"), (left, 24), tile)
            share = float(mask.float().mean())
            draw.text((left, 6), f"{grid[0]}x{grid[1]}  {share:.1%}", fill="black")
        sheet.save(path)


def make_report(sidecar: Sidecar, tables: Tables | None, kept: Mapping[str, int]) -> Report:
    """Of an update with ``tables``; without them all sites count. ``kept`` are the bytes of the
    baseline, by node."""
    masks = tables.masks if tables is not None else {}
    working = {node.mask for node in sidecar.nodes if node.macs}
    widest: dict[Grid, Tensor] = {}
    for name in sorted(masks, key=lambda name: (name not in working, -int(masks[name].sum()))):
        widest.setdefault(_size(masks[name]), masks[name])
    is_dense = tables is not None and tables.is_dense
    active = {} if is_dense else {name: float(m.float().mean()) for name, m in masks.items()}
    nodes = tuple(
        replace(
            node,
            macs_now=round(node.macs_kept * active.get(node.mask, 1.0)),
            kept=kept.get(node.name, 0),
        )
        for node in sidecar.nodes
    )
    return Report(nodes, widest, is_dense, sidecar.fused)


def _size(mask: Tensor) -> Grid:
    height, width = mask.shape[-2:]
    return height, width


def big(number: int) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
