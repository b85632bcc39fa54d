"""The invariants between passes, checked in tests and when stages are dumped."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from sparsify.codegen.errors import VerifyError
from torch.fx import GraphModule, Node

from .facts import facts
from .layout import Layout

READS = {
    "record": {"record"},
    "plan": {"plan"},
    "conditions": {"conditions", "record"},
    "update": {"record", "plan", "conditions", "update"},
}
"""Which stages a node of a stage may read."""


def _canonical(node: Node) -> None:
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
    for arg in node.all_input_nodes:
        if arg.op != "get_attr" and facts(arg).stage not in READS[facts(node).stage]:
            raise VerifyError(
                f"{node.name} ({facts(node).stage}) reads {arg.name} ({facts(arg).stage})"
            )


_CHECKS: dict[str, tuple[Callable[[Node], None], ...]] = {
    "Canonicalize": (_canonical,),
    "FoldConstants": (_canonical,),
    "AnalyzeLayout": (_analysed,),
    "PropagateMasks": (_analysed, _masked),
    "Pack": (_masked, _packed),
}


@dataclass(frozen=True)
class Inspect:
    """Checks the graph after every pass and, given a folder, writes it there as Python."""

    folder: Path | None = None

    @staticmethod
    def from_environment() -> Inspect | None:
        """Set ``SPARSIFY_DEBUG`` to a folder to check and dump every stage."""
        folder = os.environ.get("SPARSIFY_DEBUG")
        return Inspect(Path(folder)) if folder else None

    def __call__(self, stage: str, module: GraphModule) -> None:
        for node in module.graph.nodes:
            if node.op != "output":
                for check in _CHECKS[stage]:
                    check(node)
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            number = list(_CHECKS).index(stage)
            code = module.graph.python_code("self").src
            (self.folder / f"{number}_{stage}.py").write_text(code)
