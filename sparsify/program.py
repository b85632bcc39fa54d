"""A model rewritten for one signature: its three graphs, compiled, and what they exchange."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves, tree_map_only, tree_unflatten

from .ambient import Ambient
from .baseline import Baseline, ProgramKey, distinct, is_origin, origin_of
from .codegen.ambient import as_captured
from .codegen.emit import CUDA_OPTIONS, Compiled, Emitted, OnCuda, readable
from .codegen.errors import BaselineError
from .codegen.tracing import alone
from .config import SparsifyConfig
from .inputs import Possible
from .large_edits import LargeEdits
from .masks import fitted, no_site_follows
from .numbers import capture_call
from .passes.analyze import AnalyzeLayout
from .passes.blend import blended
from .passes.canonicalize import Canonicalize
from .passes.channels_last import ChannelsLast
from .passes.facts import facts
from .passes.fuse import Fuse
from .passes.layout import Grid
from .passes.masks import PropagateMasks
from .passes.pack import Pack
from .passes.partition import ThreeGraphs
from .passes.pipeline import Pipeline
from .passes.verify import Inspect
from .plan import Plan, Tables
from .signature import Call
from .state import State, Weights

Function = TypeVar("Function", bound=Callable[..., Any])

Stage = Literal["record", "dense", "conditions", "update", "again", "commit"]


def _as_captured(method: Function) -> Function:
    """``method`` of a program, whatever torch's settings around the call."""

    @functools.wraps(method)
    def run(program: Program, *args: Any, **kwargs: Any) -> Any:
        with as_captured(program.device.type):
            return method(program, *args, **kwargs)

    return cast(Function, run)


class Program:
    """The record, plan and update graphs of ``model`` for calls like ``call``."""

    def __init__(
        self,
        model: torch.nn.Module,
        config: SparsifyConfig,
        call: Call,
        ambient: Ambient,
        may_be_tensors: bool = True,
    ) -> None:
        self.ambient = ambient
        self.config = config
        self._model = model
        self.form = call.with_tensors.signature
        possible = Possible.of(call, config.grids)
        captured, call = capture_call(model, call, may_be_tensors)
        self.signature = call.signature
        self._state = State(model)
        self._retired: str | None = None
        self.joint = Canonicalize()(captured.module)
        self.output_spec = captured.output_spec
        self.layouts = layouts = possible.layouts(self.joint)
        spatial = [i for i, layout in enumerate(layouts) if layout is not None]
        self.edited = frozenset(spatial)
        first = layouts[spatial[0]]
        assert first is not None and first.grid is not None
        self.grid: Grid = first.grid
        self.batch = int(call.leaves[spatial[0]].shape[0])
        self.items = first.items
        """How many masks an update takes; 1 where all items of a batch share one."""
        self.device: torch.device = call.leaves[spatial[0]].device

        on_cuda = has_kernels(self.device)
        pipeline = Pipeline(
            AnalyzeLayout(layouts),
            PropagateMasks(
                self.grid, config.policy, config.dilation(self.grid), config.dense_share
            ),
            Pack(config.norm, config.baseline_dtype, padded=on_cuda),
            Fuse() if on_cuda else None,
            None if on_cuda else ChannelsLast(),
        )
        self.graphs = pipeline(self.joint, Inspect.from_environment())
        graphs = self.graphs
        self._emitted = _emitted(graphs, config, len(call.leaves), on_cuda)
        self.kept_bytes: Counter[str] = Counter()
        """Of the last baseline, by the name of the recorded value's node."""
        self._large = LargeEdits(self.graphs.dense, config.dense_above)
        self._folded_for = self._state.weights(), self._state.places

    def __repr__(self) -> str:
        return f"<Program for {', '.join(self.signature.names)}: {self.batch} of {self.grid}>"

    def own(self, call: Call) -> Call:
        """``call`` as the graphs take it: with tensors for numbers, where they do."""
        tensors = call.with_tensors
        return tensors if tensors.signature == self.signature else call

    @_as_captured
    def record(self, call: Call) -> tuple[Any, Baseline]:
        """The dense run, and what to remember of it."""
        call = self.own(call)
        weights = self._state.weights(whole=True)
        self._refold(weights)
        outputs, *values = self._run("record", *call.leaves)
        return self._remembered(call.leaves, outputs, values, weights)

    def _remembered(
        self, leaves: Sequence[Any], outputs: Any, values: Sequence[Any], weights: Weights
    ) -> tuple[Any, Baseline]:
        """The outputs for the caller, and a baseline that shares no memory with them."""
        foreign = {leaf.untyped_storage().data_ptr() for leaf in _tensors((leaves, outputs))}
        kept, conditions = (tuple(_own(v, foreign) for v in part) for part in values)
        kept = self._sharing(kept, values[0])
        self._require_finite(kept)
        self.kept_bytes = Counter()
        for name, own in zip(self.graphs.kept, distinct(kept), strict=True):
            self.kept_bytes[name] += own
        inputs, origins = _copy(tuple(leaves)), tuple(map(origin_of, leaves))
        results = _copy(tuple(outputs))
        baseline = Baseline(self, kept, conditions, results, inputs, origins, weights)
        return tree_unflatten(outputs, self.output_spec), baseline

    def _sharing(self, kept: Sequence[Tensor], made: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """``kept`` with one memory for what was ``made`` once. Not one tensor twice: an update
        compiled for that would not take what commits leave."""
        shared = list(kept)
        for index, first in enumerate(self.graphs.copies):
            if index != first and made[index] is made[first]:
                shared[index] = kept[first].view(kept[first].shape)
        return tuple(shared)

    @_as_captured
    def plan(self, plan: Plan) -> Tables:
        """The tables of a plan and its masks, made once."""
        if self not in plan.tables:
            # On the host, which then knows all sizes: no update waits for the device to tell.
            mask = self.mask(fitted(plan.mask, self.grid, self.batch))
            tables, values = self.graphs.plan(mask)
            masks = dict(zip(self.graphs.mask_names, values, strict=True))
            is_dense = self._large.includes(masks)
            if is_dense:
                masks = {name: _sent(own, self.device) for name, own in masks.items()}
            tables = [] if is_dense else [_sent(table, self.device) for table in tables]
            plan.tables[self] = Tables(mask, tables, masks, is_dense)
        return plan.tables[self]

    def mask(self, fitted: Tensor) -> Tensor:
        """bool [H, W], or [N, H, W] where the graphs know the items: what :func:`.masks.fitted`
        gave, as they take it."""
        if self.items > 1:
            return fitted.expand(self.items, *self.grid).contiguous()
        return fitted if fitted.dim() == 2 else fitted.any(0)

    @_as_captured
    def update(
        self, baseline: Baseline, call: Call, plan: Plan, commit: bool
    ) -> tuple[Any, Baseline | None]:
        """The edited run from what an edit touches, and with ``commit`` its own baseline."""
        tables = self.plan(plan)
        weights = self.require_current(baseline)
        if tables.is_empty:
            if not (self.only_grids or self._same_inputs(baseline, call.leaves, wait=True)):
                raise no_site_follows()
            result = tree_unflatten(_copy(baseline.outputs), self.output_spec)
            return result, baseline if commit else None
        self._refold(weights)
        if tables.is_dense:
            return self._update_densely(baseline, call, tables.masks, commit, weights)
        return self._update_packed(baseline, call, tables, commit, weights)

    def _update_packed(
        self, baseline: Baseline, call: Call, tables: Tables, commit: bool, weights: Weights
    ) -> tuple[Any, Baseline | None]:
        """Active sites only."""
        conditions = baseline.conditions
        if not self._same_inputs(baseline, call.leaves):
            conditions = self._run("conditions", *call.leaves, *baseline.expanded())
        inputs = (*call.leaves, *tables.tables, *baseline.expanded(), *conditions)
        held = {condition.untyped_storage().data_ptr() for condition in conditions}
        if not commit:
            stage: Stage = "update" if baseline.is_one_run else "again"
            outputs = [_own(value, held) for value in self._run(stage, *inputs)]
            return tree_unflatten(outputs, self.output_spec), None
        outputs, values = self._run("commit", *inputs)
        outputs = [_own(value, held) for value in outputs]
        leaves = self.edited_inputs(call.leaves, baseline.inputs, tables.masks)
        _, new = self._remembered(leaves, outputs, (values, conditions), weights)
        return tree_unflatten(outputs, self.output_spec), replace(new, is_one_run=False)

    def _update_densely(
        self,
        baseline: Baseline,
        call: Call,
        masks: Mapping[str, Tensor],
        commit: bool,
        weights: Weights,
    ) -> tuple[Any, Baseline | None]:
        """The dense model, between inputs and outputs that are the recorded ones outside."""
        inputs = self.edited_inputs(call.leaves, baseline.inputs, masks)
        outputs, *values = (
            self._run("record", *inputs) if commit else (self._run("dense", *inputs),)
        )
        outputs = self.edited_outputs(outputs, baseline.outputs, masks)
        if not commit:
            return tree_unflatten(outputs, self.output_spec), None
        return self._remembered(inputs, outputs, values, weights)

    def edited_inputs(
        self, new: Sequence[Any], old: Sequence[Any], masks: Mapping[str, Tensor]
    ) -> list[Any]:
        """``new`` inside the masks and ``old`` outside."""
        return blended(self.graphs.dense.graph.find_nodes(op="placeholder"), new, old, masks)

    def edited_outputs(
        self, new: Sequence[Any], old: Sequence[Any], masks: Mapping[str, Tensor]
    ) -> list[Any]:
        """``new`` inside the masks and ``old`` outside."""
        nodes: Any = self.graphs.dense.graph.output_node().args[0]
        return blended(nodes, new, old, masks)

    def _require_finite(self, kept: Sequence[Tensor]) -> None:
        """Raises :class:`BaselineError` for what grew too large for ``baseline_dtype``."""
        for name, value in zip(self.graphs.kept, kept, strict=True):
            if value.dtype == self.config.baseline_dtype == torch.float16 and value.isinf().any():
                raise BaselineError(
                    f"{name} does not fit into torch.float16: take baseline_dtype=torch.bfloat16"
                )

    @_as_captured
    def source(self, call: Call) -> str:
        """The update's code; compiles it on these inputs if it has not run yet."""
        if not self._emitted["update"].source:
            call = self.own(call)
            _, baseline = self.record(call)
            mask = self.mask(torch.ones(self.grid, dtype=torch.bool, device="cpu"))
            tables, _ = self.graphs.plan(mask)
            sent = [_sent(table, self.device) for table in tables]
            self._run("update", *call.leaves, *sent, *baseline.expanded(), *baseline.conditions)
        return self._emitted["update"].source

    def require_current(self, baseline: Baseline) -> Weights:
        """Raises :class:`BaselineError` if the model is not the recorded one any more."""
        weights = self._state.weights()
        reason = self._retired or self._change()
        if reason is None and baseline.weights != weights:
            refreshed = baseline.weights.refreshes != weights.refreshes
            reason = "sparse.refresh() was called" if refreshed else _changed("weights")
        if reason:
            raise BaselineError(f"{reason} after this baseline was recorded: record again")
        return weights

    def _same_inputs(self, baseline: Baseline, leaves: tuple[Any, ...], wait: bool = False) -> bool:
        """Are the inputs that an edit leaves alone the recorded ones?

        On a CPU their values tell. On CUDA they are where they are the same tensors, not written to
        since (but to ``.data``, which no tensor counts); others are only known if it may ``wait``.
        """
        triples = zip(baseline.inputs, baseline.origins, leaves, strict=True)
        for index, (old, origin, new) in enumerate(triples):
            if index in self.edited or not isinstance(old, Tensor) or is_origin(new, origin):
                continue
            if (new.is_cuda and not wait) or not torch.equal(old, new):
                return False
        return True

    @property
    def only_grids(self) -> bool:
        """Every output lies on a grid, so an empty mask leaves all of them as recorded."""
        outputs = cast(Any, self.joint.graph.output_node().args[0])
        nodes = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Node)]
        return all(facts(node).mask is not None for node in nodes)

    @functools.cached_property
    def key(self) -> ProgramKey:
        """What this program is known by, in another process too."""
        code = (readable(getattr(self.graphs, name)) for name in ("record", "update", "commit"))
        digest = hashlib.sha256("".join(code).encode()).hexdigest()
        return ProgramKey(self.signature, self.ambient, self.config, digest)

    def _run(self, name: Stage, *inputs: Any) -> Any:
        return self._emitted.get(name, getattr(self.graphs, name))(*inputs)

    @property
    def is_stale(self) -> bool:
        """True once the model has to be captured again; its baselines serve no more then."""
        self._retired = self._retired or self._change(whole=True)
        return self._retired is not None

    def _change(self, whole: bool = False) -> str | None:
        """What of the model is not as it was captured."""
        found = self._state.change(whole)
        if found:  # unless another thread's export holds the model's parts just now
            with alone():
                found = self._state.change(whole)
        return _changed(found)

    def retire(self, reason: str) -> None:
        """Baselines are refused from now on: ``reason`` is what happened after their record."""
        self._retired = reason

    def refresh(self) -> None:
        """Constants made from weights are made anew, and baselines recorded before are refused."""
        self._state.refresh()

    def _refold(self, weights: Weights) -> None:
        """Recomputes the constants made from weights, if these have changed or moved."""
        current = weights, self._state.places
        if current == self._folded_for:
            return
        graphs = self.graphs
        made = graphs.record, graphs.dense, graphs.conditions, *graphs.updates
        for fold in graphs.folds:
            value = fold(self.joint)
            for graph in made:
                if hasattr(graph, fold.name):
                    setattr(graph, fold.name, value)
        self._folded_for = current
        for emitted in self._emitted.values():
            emitted.forget()


def _emitted(
    graphs: ThreeGraphs, config: SparsifyConfig, given: int, on_cuda: bool
) -> dict[str, Emitted]:
    """What runs often, by stage; of ``given`` inputs of a call.

    Recording and committing happen once a picture: compiling them would seldom pay.
    """
    stages: dict[str, Emitted] = {
        name: Emitted(getattr(graphs, name)) for name in ("update", "again", "conditions", "dense")
    }
    if config.backend == "inductor":
        sizes = [given + index for index, grows in enumerate(graphs.dynamic) if grows]
        options = CUDA_OPTIONS if on_cuda else None
        for name in ("update", "again"):
            stages[name] = Compiled(getattr(graphs, name), sizes, graphs.most_rows, options)
        # At the first large edit; frozen where that was measured to pay: a tenth, on CPUs.
        stages["dense"] = Compiled(graphs.dense, (), name="dense model", frozen=not on_cuda)
        if on_cuda:
            stages = {name: OnCuda(emitted, given) for name, emitted in stages.items()}
    if graphs.again is graphs.update:
        stages["again"] = stages["update"]
    return stages


def has_kernels(device: torch.device) -> bool:
    """Are there kernels of our own for this device, and one graph for each size of the tables?"""
    return device.type == "cuda"


def _changed(name: str | None) -> str | None:
    return name and f"the model's {name} changed"


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _copy(tree: Any) -> Any:
    """Independent of what the caller may write to later."""
    return tree_map_only(Tensor, torch.clone, tree)


def _sent(table: Tensor, device: torch.device) -> Tensor:
    """``table`` on ``device``, without waiting until it has arrived."""
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table


def _own(value: Any, foreign: set[int]) -> Any:
    """``value``, copied if it shares ``foreign`` memory."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.untyped_storage().data_ptr() in foreign else value
