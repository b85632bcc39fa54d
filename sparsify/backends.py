"""What runs the graphs of a program, by ``SparsifyConfig.backend``."""

from __future__ import annotations

from .codegen.background.emitted import InBackground
from .codegen.emit import CUDA_OPTIONS, Compiled, Emitted, OnCuda
from .config import SparsifyConfig
from .passes.graphs import Graphs, NamedGraph


def emitted(graphs: Graphs, config: SparsifyConfig, on_cuda: bool) -> dict[str, Emitted]:
    """What runs each graph.

    Those that give a baseline run once a picture: compiling them would seldom pay.
    """
    runs: dict[NamedGraph, Emitted] = {}
    for name, part in graphs.parts.items():
        if part not in runs:
            is_rare = any(made.startswith("baseline.") for made in part.outputs)
            is_rare |= name in ("record", "commit")
            if config.backend == "eager" or is_rare:
                runs[part] = Emitted(part.module)
            elif config.backend == "auto" and not on_cuda:
                runs[part] = _in_background(part, graphs)
            else:
                runs[part] = _compiled(part, graphs, on_cuda)
    return {name: runs[part] for name, part in graphs.parts.items()}


def _compiled(part: NamedGraph, graphs: Graphs, on_cuda: bool) -> Emitted:
    """``part`` compiled at its first run, where it computes the update or the whole model."""
    run = Emitted(part.module)
    if part.stage == "update":
        options = CUDA_OPTIONS if on_cuda else None
        run = Compiled(part.module, _sizes(part, graphs), graphs.most_rows, options)
    elif part.stage == "record":
        # Frozen where that was measured to pay: a tenth, on CPUs.
        run = Compiled(part.module, {}, name="dense model", frozen=not on_cuda)
    if on_cuda and part.stage in ("update", "record", "conditions"):
        return OnCuda(run, sum(given.startswith("input.") for given in part.inputs))
    return run


def _in_background(part: NamedGraph, graphs: Graphs) -> Emitted:
    """``part``, compiled meanwhile where it computes the update or the whole model."""
    names = {"update": "update", "record": "dense model"}
    if part.stage not in names:
        return Emitted(part.module)
    return InBackground(part.module, _sizes(part, graphs), graphs.most_rows, names[part.stage])


def _sizes(part: NamedGraph, graphs: Graphs) -> dict[int, int]:
    """The axes of arguments whose size is a number of sites."""
    inputs = enumerate(part.inputs)
    return {i: graphs.dynamic[given] for i, given in inputs if given in graphs.dynamic}
