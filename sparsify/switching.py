"""Sparse weights of an exported folder: how many inputs a layer keeps is a tensor, which can be
another number after the export."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule

from .codegen.errors import ConfigError
from .codegen.nm.pattern import NM
from .codegen.nm.reference import masked_by_number
from .passes.graphs import NamedGraph
from .passes.kept import MASKED, layer_of, pattern_of
from .sidecar import Sidecar
from .weights.layers import matches, several

Patterns = Mapping[str, NM]
"""Of layers by name."""


def with_numbers(constants: NamedGraph) -> tuple[NamedGraph, dict[str, NM]]:
    """``constants`` with attributes in place of N, int32 [] as :func:`number_of` names them; and
    what the layers keep now."""
    graph, patterns = Graph(), dict[str, NM]()
    graph.output(graph.graph_copy(constants.graph, {}))
    for mask in list(graph.find_nodes(op="call_function", target=MASKED)):
        if layer := layer_of(mask):
            patterns[layer] = pattern = pattern_of(mask)
            with graph.inserting_before(mask):
                number = graph.get_attr(number_of(layer))
            mask.target = masked_by_number
            mask.args = (mask.args[0], number, pattern.m, pattern.v)
    held = {**constants.attributes(), **numbers(patterns)}
    return replace(constants, module=GraphModule(held, graph)), patterns


def number_of(layer: str) -> str:
    """The name of what says how many inputs it keeps."""
    return f"kept.{layer}"


def numbers(patterns: Patterns) -> dict[str, Tensor]:
    """What the folder's graphs take for these."""
    return {
        number_of(layer): torch.tensor(n, dtype=torch.int32)
        for layer, (n, _, _) in patterns.items()
    }


def switched(now: Patterns, n: int, layers: str | Sequence[str] | None) -> dict[str, NM]:
    """The patterns ``now`` with another N, in all layers or in those that names match, as file
    names are matched. Raises :class:`ConfigError`."""
    asked = several("*" if layers is None else layers)
    for one in asked:
        if not any(matches(layer, [one]) for layer in now):
            known = ", ".join(now) or "none"
            raise ConfigError(f"layers={one!r}: of the exported layers these are sparse: {known}")
    changed = {layer: own._replace(n=n) for layer, own in now.items() if matches(layer, asked)}
    for layer, pattern in changed.items():
        if not 0 < n <= pattern.m:
            raise ConfigError(f"n={n}: {layer} was exported with m={pattern.m}: give 0 < n <= m")
    return {**now, **changed}


def fingerprint(content: str, exported: Patterns, now: Patterns) -> str:
    """Of weights whose dense ones have the fingerprint ``content`` as they were ``exported``."""
    if now == exported:
        return content
    return hashlib.sha256(repr((content, sorted(now.items()))).encode()).hexdigest()


def counted(sidecar: Sidecar, patterns: Patterns) -> Sidecar:
    """``sidecar`` with the shares of weights that ``patterns`` keep."""
    nodes = []
    for node in sidecar.nodes:
        if node.layer in patterns:
            node = replace(node, weights=patterns[node.layer].share)
            node = replace(node, macs_now=node.macs_kept)
        nodes.append(node)
    return replace(sidecar, nodes=tuple(nodes))
