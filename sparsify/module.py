"""The user's entry: ``sparsify(model)``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, overload

from torch import Tensor, nn

from .baseline import Baseline
from .codegen.errors import BaselineError, ConfigError, MaskError
from .config import SparsifyConfig
from .folder import Format
from .items import committed, join, recorded_call, require_independent, split
from .masks import check_mask
from .passes.partition import ThreeGraphs
from .plan import Plan
from .program import Program
from .report import Report, make_report
from .session import Editing, Recording, Session
from .signature import Call, Signature, bind
from .source import as_files, whole


def sparsify(
    model: nn.Module, config: SparsifyConfig | None = None, **overrides: Any
) -> SparseModule:
    """Wraps ``model`` so that edits of its input cost what they touch.

    ``overrides`` are fields of :class:`SparsifyConfig`. The model is captured at the first
    record, once per signature (shapes, dtypes, devices, constants). Calling the result is
    calling the model; its attributes are the model's.

    >>> sparse = sparsify(unet)
    >>> out, baseline = sparse.record(latents, timestep)
    >>> out = sparse.update(baseline, edited, timestep, mask=mask)   # bool [H, W]
    """
    unknown = sorted(set(overrides) - set(SparsifyConfig.names()))
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is not one of {', '.join(SparsifyConfig.names())}")
    return SparseModule(model, replace(config or SparsifyConfig(), **overrides))


class SparseModule(nn.Module):
    """A model with a memory. See :func:`sparsify`."""

    def __init__(self, model: nn.Module, config: SparsifyConfig) -> None:
        super().__init__()
        self.model = model
        self.sparsify_config = config
        self._programs: dict[Signature, Program] = {}
        self._last: tuple[Program, Plan | None] | None = None
        self._mode: Recording | Editing | None = None
        self.training = model.training

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The dense model; inside a session, a recorded or an edited call."""
        if self._mode is None:
            return self.model(*args, **kwargs)
        return self._mode.call(bind(self.model, args, kwargs))

    def record(self, *args: Any, **kwargs: Any) -> tuple[Any, Baseline]:
        """The model's output and the baseline to update from.

        Raises :class:`CaptureError` for a model that cannot be captured and :class:`GridError`
        if no input lies on a grid.
        """
        call = bind(self.model, args, kwargs)
        return self.program(call).record(call)

    def plan(self, mask: Tensor) -> Plan:
        """Everything that depends on ``mask`` alone, to be shared by many updates.

        ``mask`` is bool [H, W], or [N, H, W] with one for each item of the batch, at the input's
        resolution. Raises :class:`MaskError`.
        """
        if self._last is None:
            raise MaskError("record a run first: the grids are known from it")
        program = self._last[0]
        check_mask(mask, program.grid, program.batch, program.device)
        plan = Plan(mask.clone())
        program.plan(plan)
        self._last = program, plan
        return plan

    @overload
    def update(
        self,
        baseline: Baseline,
        *args: Any,
        mask: Tensor | Plan,
        commit: Literal[False] = False,
        **kwargs: Any,
    ) -> Any: ...

    @overload
    def update(
        self,
        baseline: Baseline,
        *args: Any,
        mask: Tensor | Plan,
        commit: Literal[True],
        **kwargs: Any,
    ) -> tuple[Any, Baseline]: ...

    def update(
        self,
        baseline: Baseline,
        *args: Any,
        mask: Tensor | Plan,
        commit: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The output for edited inputs, computed where ``mask`` and its surroundings are.

        Inputs outside the mask are the baseline's. With ``commit`` also the baseline of the
        edited run. Where the items of a batch have different masks, each is recorded and updated
        as a batch of one (the first time costs a dense run).
        Raises :class:`SignatureError`, :class:`BaselineError`, :class:`MaskError`.
        """
        if baseline.program not in self._programs.values():
            raise BaselineError("this baseline was recorded by another model: record with this one")
        program = baseline.program
        call = bind(self.model, args, kwargs)
        program.signature.require(call.signature, "update")
        plan = mask if isinstance(mask, Plan) else Plan(mask)
        output, new = self.update_call(baseline, call, plan, commit)
        return (output, new) if commit else output

    def update_call(
        self, baseline: Baseline, call: Call, plan: Plan, commit: bool = False
    ) -> tuple[Any, Baseline | None]:
        """An update for inputs that are known to match the baseline's."""
        program = baseline.program
        baseline.require(plan, commit)
        if plan.items or baseline.values is None:
            program.require_current(baseline)
            check_mask(plan.mask, program.grid, program.batch, program.device)
            return self._update_items(baseline, call, plan, commit)
        result = program.update(baseline, call, plan, commit)
        self._last = program, plan
        return result

    def _update_items(
        self, baseline: Baseline, call: Call, plan: Plan, commit: bool
    ) -> tuple[Any, Baseline | None]:
        """Every item with its own mask; reports are then of the last one."""
        batch = baseline.program.batch
        if not baseline.items:
            calls = split(self.model, recorded_call(self.model, baseline), batch)
            outputs, items = zip(*(self.program(own).record(own) for own in calls), strict=True)
            require_independent(baseline, outputs)
            baseline.items.extend(items)
        shared = Plan(plan.mask[0]) if plan.mask.dim() == 3 else plan
        calls, plans = split(self.model, call, batch), plan.items or [shared] * batch
        results = [
            self.update_call(item, own, own_plan, commit)
            for item, own, own_plan in zip(baseline.items, calls, plans, strict=True)
        ]
        output = join([result for result, _ in results])
        new = [item for _, item in results if item is not None]
        return output, committed(baseline, call, output, new) if commit else None

    @contextmanager
    def recording(self) -> Iterator[Session]:
        """Inside, calls are recorded in order; the session then edits them in that order."""
        session = Session(self)
        with self.mode_of(Recording(session)):
            yield session

    def report(self) -> Report:
        """Per node what is packed, dense, static or a fallback, for the last plan."""
        if self._last is None:
            raise BaselineError("record a run first: there is nothing to report")
        program, plan = self._last
        tables = program.plan(plan) if plan is not None else None
        return make_report(program.graphs, tables, program.kept_bytes)

    def graphs(self, *args: Any, **kwargs: Any) -> ThreeGraphs:
        """The record, plan and update graphs for calls like this one."""
        return self.program(bind(self.model, args, kwargs)).graphs

    def code(self, *args: Any, **kwargs: Any) -> str:
        """The source that updates for calls like this one run, to be read.

        On CUDA inductor's Triton kernels and ours, on CPU its C++. Compiles the update, on these
        inputs, if that has not run yet. :func:`sparsify.dump` writes it as files.
        """
        call = bind(self.model, args, kwargs)
        return whole(self.program(call).source(call))

    def export(self, path: str | Path, *args: Any, format: Format = "pt2", **kwargs: Any) -> None:
        """Writes record, plan and update for calls like this one as the folder ``path``.

        "pt2": torch.export programs; "onnx": models for onnxruntime; "aoti": compiled packages
        for Python and C++. :func:`sparsify.load` reads all of them. The weights lie once in
        ``weights.safetensors``; ``signature.json`` names what the graphs take and return. A
        model with an argument ``format`` of its own takes that by position.
        An exported folder at ``path`` is replaced, and left as it is if something fails.
        Raises :class:`ExportError`.
        """
        from .export import export_folder

        call = bind(self.model, args, kwargs)
        export_folder(self.program(call), self.model, call, Path(path), format)

    @contextmanager
    def mode_of(self, mode: Recording | Editing) -> Iterator[None]:
        """Sessions: inside, calls go to ``mode``."""
        before, self._mode = self._mode, mode
        try:
            yield
        finally:
            self._mode = before

    def program(self, call: Call) -> Program:
        """The rewritten model for calls like this one, made at the first."""
        known = self._programs.get(call.signature)
        if known is None or known.is_stale:
            self._programs[call.signature] = Program(self.model, self.sparsify_config, call)
        program = self._programs[call.signature]
        self._last = program, None
        return program


def dump(sparse: SparseModule, folder: str | Path, *args: Any, **kwargs: Any) -> list[Path]:
    """Writes what calls like this one run, as files in ``folder``; returns their paths.

    ``record.py`` ... ``commit.py`` are the graphs as Python, ``update_compiled.py`` what the
    backend made of the update, beside the kernels of ours that it calls. Compiles the update if
    that has not run yet.
    """
    call = bind(sparse.model, args, kwargs)
    program, folder = sparse.program(call), Path(folder)
    files = as_files(program.source(call), program.graphs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]
