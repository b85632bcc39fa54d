"""Record, plan and update over graphs by name and their sidecar, in memory or from a folder."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .baseline import Baseline, Memory, distinct, is_origin, memory_of, origin_of
from .codegen.errors import BaselineError, SparsifyWarning
from .masks import fitted, no_site_follows
from .passes.blend import blended
from .passes.graphs import Constant, Read
from .plan import Plan, Tables
from .report import Report, make_report
from .sidecar import Sidecar
from .signature import Call
from .state import Weights

Values = dict[str, Any]
Reused = Sequence[Any]
"""Values that steps take over from others, in the order of :attr:`.Sidecar.reused`."""
Run = Callable[[str, Mapping[str, Any]], Values]
"""Runs the graph of this name on values by name, of which it takes those that it reads."""


class Runtime:
    """What calls of one signature do."""

    def __init__(
        self,
        sidecar: Sidecar,
        run: Run,
        device: torch.device,
        weights: Callable[[], str] = lambda: "",
    ) -> None:
        """``weights`` tells those now from others, where tables depend on them."""
        self.sidecar, self.device = sidecar, device
        self._run, self._weights = run, weights
        self.kept_bytes: Counter[str] = Counter()
        """Of the last baseline, by the model's node."""

    def record(self, call: Call, weights: Weights) -> tuple[list[Any], Baseline]:
        """The results of the dense run, and what to remember of it."""
        values = self._run("record", inputs_of(call.leaves))
        outputs = self.outputs(values)
        return outputs, self._remembered(call, call.leaves, outputs, values, weights)

    def dense(self, call: Call) -> list[Any]:
        """The results of the model alone."""
        return self.outputs(self._run("dense", inputs_of(call.leaves)))

    def step(self, call: Call, taken: Reused | None) -> tuple[list[Any], Reused]:
        """The results of the dense run, and the values that other steps may take over; or, from
        such values that are ``taken``, the results alone."""
        given = inputs_of(call.leaves) | self._taken(taken)
        made = self._run("key" if taken is None else "reuse", given)
        return self.outputs(made), self._given(made)

    def _taken(self, values: Reused | None) -> Values:
        # Of an edit that reaches no site there are none.
        return dict(zip(self.sidecar.reused, values or (), strict=False))

    def _given(self, made: Values) -> Reused:
        return [made[name] for name in self.sidecar.reused if name in made]

    def record_step(
        self, call: Call, taken: Reused | None, weights: Weights
    ) -> tuple[list[Any], Baseline, Reused]:
        """The same, and what to remember; where values are ``taken``, only what
        :meth:`update_step` reads."""
        graph = "record_key" if taken is None else "record_reuse"
        values = self._run(graph, inputs_of(call.leaves) | self._taken(taken))
        outputs = self.outputs(values)
        baseline = self._remembered(call, call.leaves, outputs, values, weights)
        is_forecast = taken is not None
        return outputs, replace(baseline, is_forecast=is_forecast), self._given(values)

    def forecast(self, call: Call, outputs: Sequence[Any], weights: Weights) -> Baseline:
        """The baseline of a call whose ``outputs`` were forecast."""
        return replace(self._baseline(call, call.leaves, outputs, {}, weights), is_forecast=True)

    def plan(self, plan: Plan) -> Tables:
        """The tables of a plan and its masks, made once."""
        key, batch, grid = self.sidecar.key, self.sidecar.batch, self.sidecar.grid
        known, weights = plan.tables.get(key), self._weights()
        if known is None or known.weights != weights:
            mask = self.mask(fitted(plan.mask, grid, batch))
            plan.tables[key] = known = self._tables(mask, weights)
        return known

    def mask(self, given: Tensor) -> Tensor:
        """bool [H, W], or [N, H, W] where graphs know the items: as the plan graph takes it."""
        if self.sidecar.items > 1:
            return given.expand(self.sidecar.items, *self.sidecar.grid).contiguous()
        if given.dim() == 3 and not bool((given == given[:1]).all()):
            warnings.warn(
                "the model mixes the items of the batch, so all of them follow the union of their "
                "masks: give one mask [H, W]",
                SparsifyWarning,
                stacklevel=2,
            )
        return given if given.dim() == 2 else given.any(0)

    def _tables(self, mask: Tensor, weights: str) -> Tables:
        # On the host, which then knows all sizes: no update waits for the device to tell.
        values = self._run("plan", {"mask": mask})
        masks = {name: value for name, value in values.items() if name.startswith("mask.")}
        tables = {name: value for name, value in values.items() if name not in masks}
        is_dense = self.sidecar.is_large(masks)
        if is_dense:
            masks, tables = {name: self._sent(own) for name, own in masks.items()}, {}
        rows = {} if is_dense else self.sidecar.rows
        return Tables(mask, self._all_sent(tables), masks, is_dense, rows, weights)

    def operands(self, baseline: Baseline, call: Call, mask: Tensor) -> Values:
        """All that the update graph reads, for a mask bool [H, W] or [N, H, W] however large."""
        mask = self.mask(mask)
        planned = self._run("plan", {"mask": mask})
        tables = self._all_sent(planned)
        return _operands(call, Tables(mask, tables, {}, False, self.sidecar.rows), baseline)

    def update(
        self, baseline: Baseline, call: Call, plan: Plan, commit: bool, weights: Weights
    ) -> tuple[list[Any], Baseline | None]:
        """The results of the edited run from what an edit touches, and with ``commit`` its own
        baseline."""
        tables = self.plan(plan)
        baseline.require(tables.mask, commit)
        if tables.is_empty:
            return self._of_no_edit(baseline, call), baseline if commit else None
        if tables.is_dense or baseline.is_forecast:
            masks = tables.masks
            if not tables.is_dense:
                masks = {name: self._sent(mask) for name, mask in masks.items()}
            return self._update_densely(baseline, call, masks, commit, weights)
        return self._update_packed(baseline, call, tables, commit, weights)

    def update_step(
        self,
        baseline: Baseline,
        call: Call,
        plan: Plan,
        taken: Reused | None,
        commit: bool,
        weights: Weights,
    ) -> tuple[list[Any], Reused, Baseline | None]:
        """The results of the edited run from what an edit touches, and the values that other steps
        may take over, at active sites; or, from such values that are ``taken``, the results. With
        ``commit`` also its own baseline."""
        tables = self.plan(plan)
        baseline.require(tables.mask, commit)
        if tables.is_empty:
            return self._of_no_edit(baseline, call), [], baseline if commit else None
        form = "key" if taken is None else "reuse"
        new: Baseline | None = None
        if tables.is_dense:
            inputs = self.edited_inputs(call.leaves, baseline.inputs, tables.masks)
            call = replace(call, leaves=tuple(inputs))
            if commit:
                outputs, new, given = self.record_step(call, taken, weights)
            else:
                outputs, given = self.step(call, taken)
            outputs = self.edited_outputs(outputs, baseline.outputs, tables.masks)
            return outputs, given, new and replace(new, outputs=tuple(copied(outputs)))
        values = self._current(baseline, call, tables) | self._taken(taken)
        made = self._run(f"{_stage(baseline, commit)}_{form}", values)
        outputs = self._own_outputs(made, values)
        if commit:
            new = self._committed(baseline, call, tables, outputs, values, made, weights)
            new = replace(new, is_forecast=taken is not None)
        return outputs, self._given(made), new

    def _of_no_edit(self, baseline: Baseline, call: Call) -> list[Any]:
        """The recorded outputs. Raises :class:`MaskError` if these do not stand for the call."""
        if not (self.sidecar.only_grids or self._same_inputs(baseline, call.leaves, True)):
            raise no_site_follows()
        return copied(baseline.outputs)

    def _update_packed(
        self, baseline: Baseline, call: Call, tables: Tables, commit: bool, weights: Weights
    ) -> tuple[list[Any], Baseline | None]:
        """Active sites only."""
        values = self._current(baseline, call, tables)
        made = self._run(_stage(baseline, commit), values)
        outputs = self._own_outputs(made, values)
        if not commit:
            return outputs, None
        return outputs, self._committed(baseline, call, tables, outputs, values, made, weights)

    def _committed(
        self,
        baseline: Baseline,
        call: Call,
        tables: Tables,
        outputs: Sequence[Any],
        values: Values,
        made: Values,
        weights: Weights,
    ) -> Baseline:
        """What to remember of an update that was given ``values`` and ``made`` others."""
        conditions = {name: v for name, v in values.items() if name.startswith("condition.")}
        leaves = self.edited_inputs(call.leaves, baseline.inputs, tables.masks)
        new = self._remembered(call, leaves, outputs, {**conditions, **made}, weights)
        return replace(new, is_one_run=False)

    def _current(self, baseline: Baseline, call: Call, tables: Tables) -> Values:
        """What updates read, with the conditions of this call."""
        values = _operands(call, tables, baseline)
        if not self._same_inputs(baseline, call.leaves):
            values |= self._run("conditions", values)
        return values

    def _own_outputs(self, made: Values, values: Values) -> list[Any]:
        """The results of an update, in memory of their own."""
        held = set[int]()
        if not self.sidecar.only_grids:  # results on a grid are new: edited over recorded ones
            kept = (v for n, v in values.items() if n.startswith(("baseline.", "condition.")))
            held = {value.untyped_storage().data_ptr() for value in kept}
        return [_own(value, held) for value in self.outputs(made)]

    def _update_densely(
        self,
        baseline: Baseline,
        call: Call,
        masks: Mapping[str, Tensor],
        commit: bool,
        weights: Weights,
    ) -> tuple[list[Any], Baseline | None]:
        """The dense model, between inputs and outputs that are the recorded ones outside."""
        inputs = self.edited_inputs(call.leaves, baseline.inputs, masks)
        values = self._run("record" if commit else "dense", inputs_of(inputs))
        outputs = self.edited_outputs(self.outputs(values), baseline.outputs, masks)
        if not commit:
            return outputs, None
        return outputs, self._remembered(call, inputs, outputs, values, weights)

    def _remembered(
        self,
        call: Call,
        leaves: Sequence[Any],
        outputs: Sequence[Any],
        values: Mapping[str, Any],
        weights: Weights,
    ) -> Baseline:
        """A baseline that shares no memory with what is the caller's."""
        foreign = {leaf.untyped_storage().data_ptr() for leaf in _tensors((leaves, outputs))}
        kept = {
            name: _own(value, foreign)
            for name, value in values.items()
            if not name.startswith(("output.", "reused."))
        }
        for name, first in self.sidecar.copies.items():
            if name not in kept and first in kept:
                # One memory, but not one tensor twice: an update compiled for that would not take
                # what commits leave.
                kept[name] = kept[first].detach()
        self._require_finite(kept)
        sizes = Counter[str]()
        for name, size in zip(kept, distinct(list(kept.values())), strict=True):
            sizes[self.sidecar.kept.get(name, "")] += size
        self.kept_bytes = sizes
        return self._baseline(call, leaves, outputs, kept, weights)

    def _baseline(
        self,
        call: Call,
        leaves: Sequence[Any],
        outputs: Sequence[Any],
        kept: Mapping[str, Tensor],
        weights: Weights,
    ) -> Baseline:
        return Baseline(
            key=self.sidecar.key,
            weights=weights,
            signature=call.signature,
            shape=(self.sidecar.batch, *self.sidecar.grid),
            values=kept,
            outputs=tuple(copied(outputs)),
            inputs=tuple(copied(leaves)),
            origins=tuple(map(origin_of, leaves)),
        )

    def _require_finite(self, kept: Mapping[str, Tensor]) -> None:
        """Raises :class:`BaselineError` for what grew too large for ``baseline_dtype``."""
        for name in self.sidecar.kept if self.sidecar.is_narrow else ():
            if name in kept and kept[name].dtype == torch.float16 and kept[name].isinf().any():
                raise BaselineError(
                    f"{self.sidecar.kept[name]} does not fit into torch.float16: take "
                    "baseline_dtype=torch.bfloat16"
                )

    def restrict(self, baseline: Baseline, plan: Plan) -> Baseline:
        """``baseline`` for updates of one mask alone, in the memory that these need.

        Maps of which an update reads active sites and halos shrink to those; what it reads whole
        (keys and values) stays. Raises :class:`MaskError`.
        """
        tables = self.plan(plan)
        baseline.require(tables.mask)
        if tables.is_dense:  # inputs and outputs are all that it reads
            return replace(baseline, values={}, restricted_to=tables.mask)
        if baseline.restricted_to is not None:
            return baseline
        values, shared = dict(baseline.fetched()), dict[tuple[Memory, Read], Tensor]()
        for name, read in self.sidecar.reads.items():
            if name not in values:  # of a step that took over what it is read for
                continue
            own = memory_of(values[name]), read
            if own not in shared:
                shared[own] = values[name].index_select(read.dim, tables.kept[read.tables])
            values[name] = shared[own].detach()
        return replace(baseline, values=values, restricted_to=tables.mask)

    def report(self, plan: Plan | None) -> Report:
        """Of updates of ``plan``, by default at all sites, from baselines like the last one."""
        tables = None if plan is None else self.plan(plan)
        return make_report(self.sidecar, tables, self.kept_bytes)

    def edited_inputs(
        self, new: Sequence[Any], old: Sequence[Any], masks: Mapping[str, Tensor]
    ) -> list[Any]:
        """``new`` inside the masks and ``old`` outside."""
        return blended(self.sidecar.inputs, new, old, masks)

    def edited_outputs(
        self, new: Sequence[Any], old: Sequence[Any], masks: Mapping[str, Tensor]
    ) -> list[Any]:
        """``new`` inside the masks and ``old`` outside."""
        names = self.sidecar.outputs
        spots = [None if isinstance(n, Constant) else self.sidecar.results[n] for n in names]
        return blended(spots, new, old, masks)

    def _same_inputs(self, baseline: Baseline, leaves: Sequence[Any], wait: bool = False) -> bool:
        """Are the inputs that an edit leaves alone the recorded ones?

        On a CPU their values tell. On CUDA they are where they are the same tensors, not written to
        since (but to ``.data``, which no tensor counts); others are only known if it may ``wait``.
        """
        known = zip(self.sidecar.inputs, baseline.inputs, baseline.origins, leaves, strict=True)
        for spot, old, origin, new in known:
            if spot is not None or not isinstance(old, Tensor) or is_origin(new, origin):
                continue
            if (new.is_cuda and not wait) or not torch.equal(old, new):
                return False
        return True

    def outputs(self, values: Mapping[str, Any]) -> list[Any]:
        """The results of the model, flattened, among values by name."""
        outputs = self.sidecar.outputs
        return [x.value if isinstance(x, Constant) else values[x] for x in outputs]

    def _all_sent(self, tables: Mapping[str, Tensor]) -> Values:
        """On the device; those that share memory still do."""
        sent: dict[Memory, Tensor] = {}
        for table in tables.values():
            if (own := memory_of(table)) not in sent:
                sent[own] = self._sent(table)
        return {name: sent[memory_of(table)].detach() for name, table in tables.items()}

    def _sent(self, table: Tensor) -> Tensor:
        """``table`` on the device, without waiting until it has arrived."""
        if self.device.type != "cuda":
            return table
        return table.pin_memory().to(self.device, non_blocking=True)


def _operands(call: Call, tables: Tables, baseline: Baseline) -> Values:
    rows = {} if baseline.restricted_to is None else tables.of_restricted
    return {**inputs_of(call.leaves), **tables.tables, **rows, **baseline.fetched()}


def _stage(baseline: Baseline, commit: bool) -> str:
    """The graph of an update from ``baseline``."""
    return "commit" if commit else "update" if baseline.is_one_run else "again"


def inputs_of(leaves: Sequence[Any]) -> Values:
    """The inputs of a call by name."""
    return {f"input.{i}": leaf for i, leaf in enumerate(leaves)}


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def copied(leaves: Sequence[Any]) -> list[Any]:
    """Independent of what the caller may write to later."""
    return list(map(copy_of, leaves))


def copy_of(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _own(value: Any, foreign: set[int]) -> Any:
    """``value``, copied if it shares ``foreign`` memory."""
    if not isinstance(value, Tensor):
        return value
    return value.clone() if value.untyped_storage().data_ptr() in foreign else value
