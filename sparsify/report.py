"""What the compiler made of a model, node by node."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image, ImageDraw
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from torch import Tensor
from torch.fx import Node

from .codegen import ops
from .passes.facts import facts
from .passes.fuse import Fused
from .passes.layout import Grid
from .passes.macs import macs
from .passes.partition import ThreeGraphs
from .plan import Tables
from .words import size_of

_TORCH = str(Path(torch.__file__).parent)

State = Literal["packed", "dense", "static", "fallback"]


@dataclass(frozen=True)
class NodeReport:
    """One operator of the model."""

    name: str
    operator: str
    state: State
    """packed: active sites only; dense: whole, by choice; static: no edit reaches it;
    fallback: whole, because no rule matched."""
    reason: str
    grid: Grid | None
    macs: int
    """Multiply-accumulates of the dense operator."""
    macs_now: int
    """The same for the update with the reported plan."""
    kept: int
    """Bytes of its value in the last baseline."""
    source: str
    """Line of the user's model."""


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
    """Where there are kernels of ours: what each does besides, and why not more."""

    def __iter__(self) -> Iterator[NodeReport]:
        return iter(self.nodes)

    @property
    def macs_dense(self) -> int:
        return sum(node.macs for node in self.nodes)

    @property
    def macs_update(self) -> int:
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
        for state in ("packed", "dense", "static", "fallback"):
            of_state = [node for node in self.nodes if node.state == state]
            dense, now = sum(n.macs for n in of_state), sum(n.macs_now for n in of_state)
            share = f"{now / max(self.macs_dense, 1):.1%}"
            kept = size_of(sum(n.kept for n in of_state))
            table.add_row(state, str(count[state]), _big(dense), _big(now), share, kept)
        share = f"{self.share_left:.1%}"
        table.add_section()
        totals = (_big(self.macs_dense), _big(self.macs_update))
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
                numbers = (_big(n.macs), _big(n.macs_now), size_of(n.kept) if n.kept else "")
                table.add_row(n.name, n.operator, grid, n.state, *numbers, n.reason)
        return table

    def kernels(self) -> Table:
        """The update's operators with kernels of ours, alike ones in one row."""
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


def make_report(graphs: ThreeGraphs, tables: Tables | None, kept: Mapping[str, int]) -> Report:
    """Of an update with ``tables``; without them all sites count. ``kept`` are the bytes of the
    baseline, by node."""
    nodes = [n for n in graphs.dense.graph.nodes if _is_of_model(n)]
    masks = tables.masks if tables is not None else {}
    working = {mask.name for n in nodes if macs(n) and (mask := facts(n).mask)}
    widest: dict[Grid, Tensor] = {}
    for name in sorted(masks, key=lambda name: (name not in working, -int(masks[name].sum()))):
        widest.setdefault(_size(masks[name]), masks[name])
    is_dense = tables is not None and tables.is_dense
    active = {} if is_dense else {name: float(m.float().mean()) for name, m in masks.items()}
    fused: tuple[Fused, ...] = graphs.update.meta.get("fused", ())
    return Report(tuple(_node(n, active, kept) for n in nodes), widest, is_dense, fused)


def _size(mask: Tensor) -> Grid:
    height, width = mask.shape[-2:]
    return height, width


def _is_of_model(node: Node) -> bool:
    return node.op == "call_function" and node.target is not ops.contiguous


def _node(node: Node, active: Mapping[str, float], kept: Mapping[str, int]) -> NodeReport:
    mask, layout = facts(node).mask, facts(node).layout
    dense = macs(node)
    share = active.get(mask.name, 1.0) if mask else 1.0
    return NodeReport(
        name=node.name,
        operator=str(getattr(node.target, "overloadpacket", None) or _function(node)),
        state=_state(node),
        reason=facts(node).reason,
        grid=layout.grid if layout else None,
        macs=dense,
        macs_now=round(dense * share),
        kept=kept.get(node.name, 0),
        source=_source(node),
    )


def _state(node: Node) -> State:
    if not facts(node).edited:
        return "static"
    if facts(node).mask is not None:
        return "packed"
    return "dense" if facts(node).layout else "fallback"


def _function(node: Node) -> str:
    return str(getattr(node.target, "__name__", node.target))


def _source(node: Node) -> str:
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    own = [line for line in lines if not line[0].startswith(_TORCH)]
    return ":".join(own[-1]) if own else ""


def _big(number: int) -> str:
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)
