"""A model rewritten for one signature: its graphs, compiled, and the model's state behind them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_unflatten

from .ambient import Ambient
from .backends import emitted
from .baseline import Baseline
from .canonical import CANONICAL, Canonical
from .codegen.ambient import as_captured
from .codegen.emit import readable
from .codegen.errors import BaselineError
from .codegen.tracing import alone
from .config import SparsifyConfig
from .inputs import Possible
from .passes.analyze import AnalyzeLayout
from .passes.channels_last import ChannelsLast
from .passes.constants import Constants
from .passes.contiguous import Contiguous, ContiguousResults
from .passes.evaluate import Evaluate, Shared
from .passes.fuse import Fuse
from .passes.graphs import NamedGraph
from .passes.layout import Grid, Layout
from .passes.listed import ListedProducts
from .passes.masks import PropagateMasks
from .passes.one_run import OfOneRun
from .passes.pack import Pack
from .passes.partition import CUTS, Partition, attribute
from .passes.parts import Part
from .passes.pipeline import Pipeline
from .passes.reuse import REUSE_CUTS, Reuse
from .passes.rows import ReadRows
from .passes.shapes import PropagateShapes
from .passes.verify import Inspect
from .plan import Plan, Tables
from .runtime import Reused, Runtime, Values
from .sidecar import Sidecar
from .signature import Call
from .state import Fingerprint, State, Weights


class Program:
    """The graphs of ``model`` for calls like ``call``."""

    def __init__(
        self,
        model: torch.nn.Module,
        config: SparsifyConfig,
        call: Call,
        ambient: Ambient,
        shared: Shared,
        may_be_tensors: bool = True,
        resets: int = 0,
        part: Part | None = None,
        canonical: Canonical | None = None,
    ) -> None:
        """``part`` is what steps may reuse; it has graphs of its own then. What another program
        was made of, ``canonical``, is not captured again."""
        self.ambient, self.config, self.part = ambient, config, part
        self.form = call.with_tensors.signature
        possible = Possible.of(call, config.grids)
        self.canonical = canonical = canonical or Canonical.of(model, call, may_be_tensors)
        self.signature, self.output_spec = canonical.signature, canonical.output_spec
        call = call.like(self.signature)
        self._model, self._lock = model, Lock()
        self._shared = shared
        self._state = State(model, resets, canonical.reset)
        self._retired: str | None = None
        self.layouts = layouts = possible.layouts(canonical.graphs.joint)
        spatial = next(i for i, layout in enumerate(layouts) if layout is not None)
        first, edited = layouts[spatial], call.leaves[spatial]
        assert first is not None and first.grid is not None
        self.grid: Grid = first.grid
        self.device: torch.device = edited.device
        how = config, has_kernels(self.device), self._evaluated, part
        pipeline = standard(layouts, self.grid, *how)
        self.graphs = graphs = pipeline(canonical.copied(), Inspect.from_environment())
        sidecar = Sidecar.of(
            graphs,
            key=self._key(),
            batch=int(edited.shape[0]),
            grid=self.grid,
            is_narrow=config.baseline_dtype == torch.float16,
            dense_above=config.dense_above,
        )
        self._emitted = emitted(graphs, config, has_kernels(self.device))
        self.runtime = Runtime(sidecar, self._run, self.device, self._planned_with)
        self._made_for = self._state.weights(), self._state.places

    def __repr__(self) -> str:
        names = ", ".join(self.signature.names)
        return f"<Program for {names}: {self.runtime.sidecar.batch} of {self.grid}>"

    @property
    def key(self) -> str:
        return self.runtime.sidecar.key

    def _key(self) -> str:
        """What this program is known by, in another process too: its graphs, the tensors that they
        hold beside the model's weights, and what of the configuration is not in the graphs."""
        code = (readable(part.module) for part in self.graphs.parts.values())
        config = replace(self.config, backend="eager", any_step=False, warn_dropped=True)
        held = Fingerprint(self._held()).content()
        made_for = map(repr, (self.signature, self.ambient, config, self._state.constants, held))
        return hashlib.sha256("".join((*made_for, *code)).encode()).hexdigest()

    def _held(self) -> list[Tensor]:
        """Constants of the capture, in the order of the graphs: no weights, nor made of weights."""
        weights = {t.data_ptr() for t in (*self._model.parameters(), *self._model.buffers())}
        made = set(map(attribute, self.graphs["constants"].outputs))
        found: dict[str, Tensor] = {}
        for part in self.graphs.parts.values():
            for name, value in part.attributes().items():
                if isinstance(value, Tensor) and value.data_ptr() not in weights:
                    found[name] = value
        return [value for name, value in found.items() if name not in made]

    def _run(self, name: str, values: Mapping[str, Any]) -> Values:
        part = self.graphs[name]
        results = self._emitted[name](*(values[given] for given in part.inputs))
        return dict(zip(part.outputs, results, strict=True))

    def record(self, call: Call) -> tuple[Any, Baseline]:
        """The dense run, and what to remember of it."""
        with self.as_captured():
            weights = self._state.weights(whole=True)
            self._make_constants(weights)
            outputs, baseline = self.runtime.record(call.like(self.signature), weights)
        return tree_unflatten(outputs, self.output_spec), baseline

    def step(self, call: Call, taken: Reused | None) -> tuple[Any, Reused]:
        """The output of a key step, and the values that later steps may take over; or, from such
        values that are ``taken``, the output of another step."""
        with self.as_captured():
            self._make_constants(self._state.weights())
            outputs, made = self.runtime.step(call.like(self.signature), taken)
        return tree_unflatten(outputs, self.output_spec), made

    def record_step(self, call: Call, taken: Reused | None) -> tuple[Any, Baseline, Reused]:
        """The same, and its baseline."""
        with self.as_captured():
            weights = self._state.weights(whole=True)
            self._make_constants(weights)
            outputs, baseline, made = self.runtime.record_step(
                call.like(self.signature), taken, weights
            )
        return tree_unflatten(outputs, self.output_spec), baseline, made

    def update_step(
        self, baseline: Baseline, call: Call, plan: Plan, taken: Reused | None, commit: bool
    ) -> tuple[Any, Reused, Baseline | None]:
        """The same of an edited run, from what an edit touches, and with ``commit`` its own
        baseline."""
        with self.as_captured():
            weights = self.require_current(baseline)
            self._make_constants(weights)
            outputs, made, new = self.runtime.update_step(
                baseline, call, plan, taken, commit, weights
            )
        return tree_unflatten(outputs, self.output_spec), made, new

    def forecast(self, call: Call, outputs: list[Any]) -> tuple[Any, Baseline]:
        """A call whose outputs, flattened, were forecast, and its baseline."""
        with self.as_captured():
            call, weights = call.like(self.signature), self._state.weights()
            baseline = self.runtime.forecast(call, outputs, weights)
        return tree_unflatten(outputs, self.output_spec), baseline

    def plan(self, plan: Plan) -> Tables:
        """The tables of a plan and its masks, made once."""
        with self.as_captured():
            return self.runtime.plan(plan)

    def update(
        self, baseline: Baseline, call: Call, plan: Plan, commit: bool
    ) -> tuple[Any, Baseline | None]:
        """The edited run from what an edit touches, and with ``commit`` its own baseline."""
        with self.as_captured():
            weights = self.require_current(baseline)
            self._make_constants(weights)
            outputs, new = self.runtime.update(baseline, call, plan, commit, weights)
        return tree_unflatten(outputs, self.output_spec), new

    def restrict(self, baseline: Baseline, plan: Plan) -> Baseline:
        """See :meth:`.runtime.Runtime.restrict`."""
        with self.as_captured():
            self.require_current(baseline)
            return self.runtime.restrict(baseline, plan)

    def source(self, call: Call) -> str:
        """The update's code; compiles it on these inputs if it has not run yet."""
        if not self._emitted["update"].source:
            self.compile(call, lambda stage: None)
        return self._emitted["update"].source

    def compile(self, call: Call, tell: Callable[[str], None]) -> None:
        """Compiles the update for calls like this one. Raises :class:`CompileError`."""
        tell("recording")
        _, baseline = self.record(call)
        everything = torch.ones(self.grid, dtype=torch.bool, device="cpu")
        with self.as_captured():
            values = self.runtime.operands(baseline, call.like(self.signature), everything)
            operands = [values[name] for name in self.graphs["update"].inputs]
            self._emitted["update"].ahead(operands, tell)

    def weights(self) -> Weights:
        """Their fingerprint now."""
        return self._state.weights()

    def require_current(self, baseline: Baseline) -> Weights:
        """Raises :class:`BaselineError` if the model is not the recorded one any more."""
        weights = self._state.weights()
        reason = self._retired or self._change()
        reason = reason or baseline.weights.difference(weights)
        if reason:
            raise BaselineError(f"{reason} after this baseline was recorded: record again")
        return weights

    @property
    def is_stale(self) -> bool:
        """True once the model has to be captured again; its baselines serve no more then."""
        self._retired = self._retired or self._change(whole=True)
        return self._retired is not None

    @property
    def retired(self) -> str | None:
        """What happened, if the model had to be captured again."""
        return self._retired

    def _change(self, whole: bool = False) -> str | None:
        """What of the model is not as it was captured."""
        found = self._state.change(whole)
        if found:  # unless another thread's export holds the model's parts just now
            with alone():
                found = self._state.change(whole)
        return _changed(found)

    def refresh(self) -> None:
        """Constants made from weights are made again, and baselines recorded before are refused."""
        self._state.refresh()

    def _make_constants(self, weights: Weights) -> None:
        """Evaluates the constants again, if the weights have changed or moved."""
        current = weights, self._state.places
        with self._lock:
            if current == self._made_for:
                return
            constants, modules = self.graphs["constants"], [self.graphs.joint]
            modules += [part.module for part in self.graphs.parts.values()]
            for name, value in zip(constants.outputs, self._evaluated(constants), strict=True):
                for module in modules:
                    if hasattr(module, attribute(name)):
                        setattr(module, attribute(name), value)
            for one in self._emitted.values():
                one.forget()
            self._made_for = current

    def _planned_with(self) -> str:
        """The weights now, if tables depend on constants made of them."""
        if not self.graphs["plan"].graph.find_nodes(op="get_attr"):
            return ""
        weights = self._state.weights()
        self._make_constants(weights)
        return repr(weights)

    def _evaluated(self, constants: NamedGraph) -> tuple[Tensor, ...]:
        """What another program of this model has made of the same weights is not made again."""
        weights = *self._model.parameters(), *self._model.buffers()
        state = *self._state.weights(), self.ambient, *self._state.places
        return self._shared.evaluated(constants, weights, state)

    def as_captured(self) -> Any:
        """Whatever torch's settings around a call."""
        return as_captured(self.device.type)


def standard(
    layouts: tuple[Layout | None, ...],
    grid: Grid,
    config: SparsifyConfig,
    on_cuda: bool,
    evaluate: Evaluate,
    part: Part | None,
) -> Pipeline:
    """The passes for inputs of these ``layouts``, and those of the configuration."""
    update = (PropagateShapes(grid), Fuse()) if on_cuda else (ChannelsLast(),)
    reuse, cuts = ((), CUTS) if part is None else ((Reuse(part),), (*CUTS, *REUSE_CUTS))
    passes = (
        AnalyzeLayout(layouts),
        Constants(),
        PropagateMasks(grid, config.policy, config.dilation(grid), config.dense_share),
        *reuse,
        Pack(config.norm, config.baseline_dtype, on_cuda, config.costs),
        ListedProducts(config.costs),
        Partition(cuts=cuts, evaluate=evaluate),
        OfOneRun(),
        ReadRows(),
        *update,
        ContiguousResults(),
        Contiguous(),
    )
    return Pipeline(passes, given=CANONICAL.ensured).including(config.passes)


def has_kernels(device: torch.device) -> bool:
    """Are there Triton kernels for this device, and one graph for each size of the tables?"""
    return device.type == "cuda"


def _changed(name: str | None) -> str | None:
    return name and f"the model's {name} changed"
