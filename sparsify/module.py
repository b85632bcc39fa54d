"""The user's entry: ``sparsify(model)``."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import nn

from .baseline import Baseline
from .baseline_file import load_baseline
from .codegen.errors import BaselineError
from .config import SparsifyConfig
from .engine import Engine
from .folder import Format
from .masks import MaskLike
from .passes.graphs import Graphs
from .passes.parts import Part
from .plan import Plan
from .report import Report
from .sampling import Sampling
from .schedule import Schedule
from .session import Recording, Session
from .session_file import files_of_calls
from .source import as_files, whole
from .store import BaselineStore, Calls
from .wrapping import require_module, view


def sparsify(
    model: nn.Module,
    config: SparsifyConfig | None = None,
    *,
    method: str = "forward",
    **overrides: Any,
) -> SparseModule:
    """``model`` so wrapped that edits of its input cost what they touch.

    The result is a module of the same class, with the same parameters, buffers, submodules and
    attributes: what is written to one is written to both. Calling it is calling the model, but
    inside a session. ``method`` names what is sparse, if that is not ``forward``: ``"decode"`` of
    a VAE. ``overrides`` are fields of :class:`SparsifyConfig`.

    The model is captured at the first record, once for each signature (shapes, dtypes, devices,
    constants) and each of torch's settings (autocast, default dtype and device, deterministic
    algorithms), and again once its attributes or hooks have changed.

    Raises :class:`ConfigError`, and :class:`ModelError` for what is no module, such as a pipeline.

    >>> sparse = sparsify(unet)
    >>> out, baseline = sparse.record(latents, timestep)
    >>> out = sparse.update(baseline, edited, timestep, mask=mask)   # bool [H, W]
    """
    require_module(model, method)
    return _wrap(model, SparsifyConfig.of(config, overrides), method)


class SparseModule(nn.Module):
    """A model with a memory. See :func:`sparsify`."""

    __slots__ = ()
    _engine: Engine
    """In a slot, for the model's own attributes are shared."""

    @property
    def sparsify_config(self) -> SparsifyConfig:
        """How the model is rewritten."""
        return self._engine.config

    def record(self, *args: Any, **kwargs: Any) -> tuple[Any, Baseline]:
        """The model's output and the baseline to update from.

        Raises :class:`CaptureError` for a model that cannot be captured and :class:`GridError`
        if no input lies on a grid.
        """
        call = self._engine.bind(args, kwargs)
        return self._engine.program(call).record(call)

    def plan(self, mask: MaskLike | None = None) -> Plan:
        """Everything that depends on ``mask`` alone, to be shared by many updates.

        ``mask`` is bool [H, W], or [N, H, W] with one for each item of the batch, or what else
        :mod:`sparsify.masks` takes. The plan keeps a copy. Raises :class:`MaskError`.
        """
        return self._engine.plan(mask)

    @overload
    def update(
        self,
        baseline: Baseline,
        *args: Any,
        mask: MaskLike | Plan,
        commit: Literal[False] = False,
        **kwargs: Any,
    ) -> Any: ...

    @overload
    def update(
        self,
        baseline: Baseline,
        *args: Any,
        mask: MaskLike | Plan,
        commit: Literal[True],
        **kwargs: Any,
    ) -> tuple[Any, Baseline]: ...

    def update(
        self,
        baseline: Baseline,
        *args: Any,
        mask: MaskLike | Plan | None = None,
        commit: bool = False,
        **kwargs: Any,
    ) -> Any:
        """The output for edited inputs, computed where ``mask`` and its surroundings are.

        ``mask`` is bool [H, W], or [N, H, W] with one for each item of the batch. Outside of it
        inputs are the baseline's; the first edit that is left out so gives a warning
        (``warn_dropped``). With ``commit`` also returns the baseline of the edited run.
        Raises :class:`SignatureError`, :class:`BaselineError`, :class:`MaskError`.
        """
        call = self._engine.bind(args, kwargs)
        output, new = self._engine.update(baseline, call, Plan.of(mask), commit)
        return (output, new) if commit else output

    def restrict(self, baseline: Baseline, mask: MaskLike | Plan | None = None) -> Baseline:
        """``baseline`` for updates of one mask alone, in the memory that these need.

        Maps of which an update reads active sites and halos shrink to those; what it reads whole
        (keys and values) stays. Raises :class:`MaskError`, :class:`BaselineError`.
        """
        return self._engine.restrict(baseline, Plan.of(mask))

    @contextmanager
    def recording(
        self,
        schedule: Schedule | None = None,
        *,
        store: BaselineStore | None = None,
        calls: int | None = None,
    ) -> Iterator[Session]:
        """Inside, calls are recorded in order; the session then edits them in that order.

        With a ``schedule`` only its key steps run the model, and only these keep more than their
        outputs. Only calls of this context count, as :mod:`contextvars` defines it: other threads
        have sessions of their own.

        With a ``store`` the values of the calls lie there. If it is known how many ``calls`` will
        be made, or there is a schedule, the first one tells whether they have room. Raises
        :class:`StoreError` if not, with the budget that would do.
        """
        session = Session(self._engine, Calls.of(store, calls, schedule))
        with self._engine.mode_of(Recording(session, schedule)):
            yield session

    def load_session(
        self,
        path: str | Path,
        device: torch.device | str | None = None,
        *,
        store: BaselineStore | None = None,
    ) -> Session:
        """What :meth:`.Session.save` wrote, with its tensors on ``device``, by default where they
        were; on a CPU they are read when they are used, unless they are copied into a ``store``.
        Edits refuse what other weights or another configuration recorded. Raises
        :class:`FolderError` for a folder that is not as it was written, and :class:`StoreError` if
        the store has no room."""
        files = files_of_calls(Path(path))
        session = Session(self._engine, Calls.of(store, len(files)))
        for file in files:
            session.calls.append(load_baseline(file, device))
        return session

    @contextmanager
    def sampling(self, schedule: Schedule, ahead: int = 1) -> Iterator[Sampling]:
        """Inside, calls at key steps of the ``schedule`` run the model; the others give a forecast
        of its output from those, or compute it from a forecast of the part that is reused.

        A call's step is told by its timestep, so two calls with guidance are one step, and a
        timestep that turns back begins a new run. Where the steps between two key steps read no
        picture (``reuse="encoder"``), up to ``ahead`` of them run as one batch, in as many times
        the memory. Raises :class:`SessionError` for a step that the schedule does not know.
        """
        sampling = Sampling(self._engine, schedule, ahead)
        with self._engine.mode_of(sampling):
            yield sampling

    def calibrate(
        self,
        run: Callable[[], Any],
        *,
        calls: int | None = None,
        psnr: float | None = None,
        longest: int | None = None,
        reuse: Part = "output",
    ) -> Schedule:
        """The schedule for the sampler that ``run`` runs with this module: the best one with
        ``calls`` key steps, or the one with the fewest that reaches ``psnr``, in dB.

        ``run()`` samples, from the same noise each time, and returns the pictures. It is run once
        whole; all that the steps gave is kept, and the errors of all forecasts from two earlier
        steps follow. With ``reuse`` these are errors of a part of the model (:class:`Schedule`).
        Key steps are a shortest path over these errors, at most ``longest`` steps apart (by default
        twice the mean), and weights are fitted by least squares. Then it is run by the schedule,
        which carries the PSNR to the whole run. In all this costs at most three whole runs. The
        schedule is for runs with the same timesteps, whatever the noise and the prompt.

        Raises :class:`ConfigError`, and :class:`SessionError` for a run that cannot be compared
        with itself.
        """
        from .calibrate import calibrate

        return calibrate(self._engine, run, calls, psnr, longest, reuse)

    def refresh(self) -> None:
        """For a write to weights that went unnoticed: baselines recorded before are refused.

        Writes are noticed at once, but for those that count no version (``weight.data``, in
        ``inference_mode``): on a CPU if they leave one word of every 16 KiB alone, on CUDA always.
        They are seen at the next record; and here.
        """
        self._engine.refresh()

    def reset(self) -> None:
        """For a change that nobody can notice (of globals, closures, classes): models are captured
        again, and baselines recorded before are refused."""
        self._engine.reset()

    def report(self) -> Report:
        """Per node what is packed, dense, static or a fallback, for the last plan."""
        if self._engine.last is None:
            raise BaselineError("record a run first: there is nothing to report")
        program, plan = self._engine.last
        return program.runtime.report(plan)

    def graphs(self, *args: Any, **kwargs: Any) -> Graphs:
        """The graphs for calls like this one, by name: record, plan, update and more."""
        return self._engine.program(self._engine.bind(args, kwargs)).graphs

    def code(self, *args: Any, **kwargs: Any) -> str:
        """The source that updates for calls like this one run, to be read.

        On CUDA these are inductor's Triton kernels and custom ones, on CPU its C++, and with
        ``backend="auto"`` the graph as Python until it is compiled. With "inductor" this compiles
        the update, on these inputs, if it has not run yet. :func:`sparsify.dump` writes files.
        """
        call = self._engine.bind(args, kwargs)
        return whole(self._engine.program(call).source(call))

    def compile(
        self, *args: Any, progress: Callable[[str], Any] | None = None, **kwargs: Any
    ) -> None:
        """Compiles updates for calls like this one now, in this call; ``progress`` hears of each
        stage. With ``backend="auto"`` later processes find what was compiled in the cache.

        Raises :class:`CompileError`; updates run uncompiled then. It takes the place of the method
        of :class:`torch.nn.Module`.
        """
        call = self._engine.bind(args, kwargs)
        self._engine.program(call).compile(call, progress or (lambda stage: None))

    def export(
        self,
        path: str | Path,
        *args: Any,
        format: Format = "pt2",
        schedule: Schedule | None = None,
        **kwargs: Any,
    ) -> None:
        """Writes record, plan and update for calls like this one as the folder ``path``, and with a
        ``schedule`` what sampling by it takes.

        "pt2": torch.export programs; "onnx": models for onnxruntime; "aoti": compiled packages
        for Python and C++. :func:`sparsify.load` reads all of them. The weights lie once in
        ``weights.safetensors``; ``signature.json`` names what the graphs take and return. A
        model with an argument ``format`` or ``schedule`` of its own takes that by position.
        An exported folder at ``path`` is replaced, and left as it is if something fails.
        Raises :class:`ExportError`.
        """
        from .export import export_folder

        call = self._engine.bind(args, kwargs)
        program = self._engine.program(call, None if schedule is None else schedule.part)
        export_folder(program, self._engine.model, call, Path(path), format, schedule)

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseModule:
        """A copy of the model, wrapped alike; it captures again."""
        function, arguments = self.__reduce_ex__(4)
        copied = memo[id(self)] = function(*copy.deepcopy(arguments, memo))
        return cast(SparseModule, copied)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, tuple[Any, ...]]:
        """The model is pickled, its programs are not."""
        return _wrap, (self._engine.whole, self._engine.config, self._engine.method)


def _wrap(model: nn.Module, config: SparsifyConfig, method: str) -> SparseModule:
    kind = type(model)
    names: dict[str, Any] = {"__slots__": ("_engine",), method: _entry(kind, method)}
    if method == "forward":
        names["__call__"] = _entry(kind, "__call__")
    sparse = view(model, (SparseModule, kind), names)
    object.__setattr__(sparse, "_engine", Engine(model, config, method))
    return cast(SparseModule, sparse)


def _entry(kind: type[nn.Module], name: str) -> Any:
    """The method ``name``, which a session takes over."""
    dense = getattr(kind, name)

    @functools.wraps(dense)
    def entry(self: SparseModule, *args: Any, **kwargs: Any) -> Any:
        engine = self._engine
        # The model's own methods know nothing of what a sparse module adds to them.
        target = self if name == "__call__" else engine.whole
        return engine.call(lambda: dense(target, *args, **kwargs), args, kwargs)

    # A compiler that traced it would take one state of the session for all times.
    why = "a session decides call by call what a sparse module runs"
    return torch.compiler.disable(entry, reason=why)


def dump(sparse: SparseModule, folder: str | Path, *args: Any, **kwargs: Any) -> list[Path]:
    """Writes what calls like this one run, as files in ``folder``; returns their paths.

    ``record.py`` ... ``commit.py`` are the graphs as Python, ``update_compiled.py`` what the
    backend made of the update, beside the custom kernels that it calls. Compiles the update if
    that has not run yet.
    """
    engine = sparse._engine
    call = engine.bind(args, kwargs)
    program, folder = engine.program(call), Path(folder)
    files = as_files(program.source(call), program.graphs)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    return [folder / name for name in files]
