"""The invariants between passes, checked in tests and when stages are dumped."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sparsify.codegen.errors import VerifyError
from sparsify.codegen.prepack import PREPACKS
from torch.fx import Node

from .facts import ANYWHERE, facts
from .graphs import Graphs
from .layout import Layout
from .partition import STAGES

_READS = {stage.name: {stage.name, ANYWHERE, *stage.reads} for stage in STAGES}
_READS[ANYWHERE] = {ANYWHERE}


def _canonical(node: Node) -> None:
    """Of the model's own nodes, before stages are known."""
    if facts(node).stage:
        return
    if node.op == "call_function" and "val" not in node.meta:
        raise VerifyError(f"{node.name} has no value")
    if getattr(node.target, "overloadpacket", None) is torch.ops.aten.clone:
        raise VerifyError(f"{node.name} is a copy")


def _analysed(node: Node) -> None:
    layout, value = facts(node).layout, node.meta.get("val")
    if isinstance(layout, Layout) and isinstance(value, torch.Tensor):
        if layout.shape != tuple(value.shape):
            raise VerifyError(f"{node.name} is {tuple(value.shape)}, its layout {layout.shape}")
    elif facts(node).edited and layout is None and not facts(node).reason:
        raise VerifyError(f"{node.name} has neither a layout nor a reason for having none")


def _masked(node: Node) -> None:
    mask, layout = facts(node).mask, facts(node).layout
    if mask is not None and not facts(node).edited:
        raise VerifyError(f"{node.name} has a mask but no edit reaches it")
    if mask is not None and not (isinstance(layout, Layout) and layout.packable):
        raise VerifyError(f"{node.name} has a mask but cannot be packed")


def _packed(node: Node) -> None:
    own, format = facts(node).stage, node.kwargs.get("format")
    for arg in node.all_input_nodes:
        if facts(arg).stage not in _READS.get(own, (facts(arg).stage,)):
            raise VerifyError(f"{node.name} ({own}) reads {arg.name} ({facts(arg).stage})")
        if arg.target in PREPACKS and arg.kwargs["format"] != format:
            stored = arg.kwargs["format"]
            raise VerifyError(f"{node.name} reads {arg.name}, which is {stored}, as {format}")


PROPERTIES: dict[str, Callable[[Node], None] | None] = {
    "canonical": _canonical,
    "constants": None,
    "layouts": _analysed,
    "masks": _masked,
    "reuse": None,
    "packed": _packed,
    "graphs": None,
    "rows": None,
    "shapes": None,
}
"""What passes require and ensure, and what has to be true of every node of the joint graph then."""


@dataclass(frozen=True)
class Inspect:
    """Checks the joint graph after every pass, and, given a folder, writes all graphs there as
    Python."""

    folder: Path | None = None

    @staticmethod
    def from_environment() -> Inspect | None:
        """Set ``SPARSIFY_DEBUG`` to a folder to check and dump every pass."""
        folder = os.environ.get("SPARSIFY_DEBUG")
        return Inspect(Path(folder)) if folder else None

    def __call__(self, graphs: Graphs) -> None:
        checks = [check for name in graphs.holds if (check := PROPERTIES.get(name))]
        for node in graphs.joint.graph.nodes:
            if node.op != "output":
                for check in checks:
                    check(node)
        for part in graphs.parts.values():
            part.graph.lint()
        if self.folder is not None:
            self._write(self.folder, graphs)

    def _write(self, folder: Path, graphs: Graphs) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        number, name = len(graphs.passed), graphs.passed[-1]
        modules = {"joint": graphs.joint, **{n: p.module for n, p in graphs.parts.items()}}
        for own, module in modules.items():
            code = module.graph.python_code("self").src
            (folder / f"{number:02}_{name}_{own}.py").write_text(code)
