"""What running a program's graphs takes beside them: plain data, which exports write as well."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch.fx import Node

from .codegen import ops
from .passes.blend import Spot, mask_name
from .passes.facts import facts
from .passes.fuse import Fused
from .passes.graphs import Constant, Graphs, Read, Row
from .passes.layout import Axis, Grid, Layout, Space
from .passes.macs import dense_macs, macs, of_weight, share_kept
from .passes.rules.base import draws

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
    """Multiply-accumulates of the dense operator with all of its weights."""
    weights: float
    """Share of its weights that are kept."""
    layer: str
    """The layer of the model that has the weights, where not all are kept."""
    macs_now: int
    """Multiply-accumulates of the update with the reported plan, of the weights that are kept."""
    kept: int
    """Bytes of its value in the last baseline."""
    source: str
    """Line of the user's model."""
    mask: str
    """The plan's value that says where it is active; empty where it is computed whole."""
    reused: bool
    """Only key steps of a sampling run compute it."""

    @property
    def macs_kept(self) -> int:
        """Of the weights that are kept, at all sites."""
        return round(self.macs * self.weights)


@dataclass(frozen=True)
class Sidecar:
    """Values are named as the graphs name them (:class:`.passes.graphs.NamedGraph`)."""

    key: str
    """A hash of the graphs, and of all that they were made for."""
    batch: int
    grid: Grid
    """Of masks."""
    inputs: tuple[Spot | None, ...]
    outputs: tuple[str | Constant, ...]
    results: Mapping[str, Spot | None]
    kept: Mapping[str, str]
    copies: Mapping[str, str]
    reads: Mapping[str, Read]
    rows: Mapping[str, Row]
    """As in :class:`.passes.graphs.Graphs`."""
    reused: tuple[str, ...]
    """The values that steps of a sampling run may take over from others."""
    nodes: tuple[NodeReport, ...]
    """Of the model, with all sites active."""
    fused: tuple[Fused, ...]
    is_narrow: bool
    """Are values rounded to float16, into which not all fit?"""
    dense_above: float
    """Updates that compute a larger share of the MACs run the dense model instead."""

    @staticmethod
    def of(
        graphs: Graphs, key: str, batch: int, grid: Grid, is_narrow: bool, dense_above: float
    ) -> Sidecar:
        nodes = [_of_model(n) for n in graphs["dense"].graph.nodes if _is_of_model(n)]
        steps = graphs.parts.get("reuse", graphs["dense"])
        every_step = {_of_model(node).name for node in steps.graph.nodes}
        # The recorded noise counts, which a dense run would draw again.
        is_repeatable = not any(map(draws, nodes))
        return Sidecar(
            key,
            batch,
            grid,
            graphs.inputs,
            graphs.outputs,
            graphs.results,
            graphs.kept,
            graphs.copies,
            graphs.reads,
            graphs.rows,
            graphs["key"].results("reused") if "key" in graphs.parts else (),
            tuple(_node(n, n.name not in every_step) for n in nodes),
            graphs["update"].module.meta.get("fused", ()),
            is_narrow,
            dense_above if is_repeatable else 1.0,
        )

    @cached_property
    def items(self) -> int:
        """How many masks an update takes; 1 where all items of a batch share one."""
        return max(spot.layout.items for spot in self.inputs if spot)

    @cached_property
    def only_grids(self) -> bool:
        """Every result lies on a grid, so an empty mask leaves all of them as recorded."""
        return all(spot is not None and spot.mask for spot in self.results.values())

    def is_large(self, masks: Mapping[str, torch.Tensor]) -> bool:
        """Would an update with these masks, bool [H, W] or [N, H, W] by name, compute too much?"""
        shares = {name: int(mask.count_nonzero()) / mask.numel() for name, mask in masks.items()}
        now = sum(work * shares.get(name, 1.0) for name, work in self._work.items())
        return now > self._most

    @cached_property
    def _most(self) -> float:
        """Multiply-accumulates of an update."""
        return self.dense_above * sum(node.macs_kept for node in self.nodes)

    @cached_property
    def _work(self) -> Mapping[str, int]:
        """The dense ones of what updates compute, by mask."""
        work = Counter[str]()
        for node in self.nodes:
            work[node.mask] += 0 if node.state == "static" else node.macs_kept
        return work

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> Sidecar:
        """Raises KeyError, TypeError or ValueError for anything else than :meth:`to_json` gave."""
        made: dict[str, Any] = {
            **content,
            "grid": tuple(content["grid"]),
            "inputs": tuple(map(_spot, content["inputs"])),
            "outputs": tuple(
                Constant(**x) if isinstance(x, dict) else x for x in content["outputs"]
            ),
            "results": {name: _spot(spot) for name, spot in content["results"].items()},
            "reads": {k: Read(v["dim"], tuple(v["tables"])) for k, v in content["reads"].items()},
            "reused": tuple(content["reused"]),
            "rows": {k: Row(v["table"], tuple(v["kept"])) for k, v in content["rows"].items()},
            "nodes": tuple(_report(entry) for entry in content["nodes"]),
            "fused": tuple(Fused(**{**x, "parts": tuple(x["parts"])}) for x in content["fused"]),
        }
        return Sidecar(**made)


def _spot(entry: Mapping[str, Any] | None) -> Spot | None:
    if entry is None:
        return None
    dims = (tuple(map(_axis, dim)) for dim in entry["layout"]["dims"])
    return Spot(Layout(tuple(dims)), entry["mask"])


def _axis(entry: Mapping[str, Any]) -> Axis:
    space = entry["space"]
    if space is not None:
        space = Space(**{**space, "grid": tuple(space["grid"])})
    return Axis(entry["size"], entry["name"], space)


def _report(entry: Mapping[str, Any]) -> NodeReport:
    grid: Sequence[int] | None = entry["grid"]
    return NodeReport(**{**entry, "grid": tuple(grid) if grid else None})


def _is_of_model(node: Node) -> bool:
    return node.op == "call_function" and node.target is not ops.contiguous


def _of_model(node: Node) -> Node:
    """The node of the model that it is, or computes in another way."""
    return facts(node).computes or node


def _node(node: Node, reused: bool) -> NodeReport:
    known = facts(node)
    return NodeReport(
        name=node.name,
        operator=str(getattr(node.target, "overloadpacket", None) or _function(node)),
        state=_state(node),
        reason=known.reason,
        grid=known.layout.grid if known.layout else None,
        macs=dense_macs(node),
        weights=share_kept(node),
        layer=of_weight(node).layer,
        macs_now=macs(node),
        kept=0,
        source=_source(node),
        mask=mask_name(known.mask) if known.mask else "",
        reused=reused,
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
