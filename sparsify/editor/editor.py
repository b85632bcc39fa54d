"""Edits of what a diffusers pipeline makes, through the pipeline's own call."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from torch import Tensor

from ..closing import Closing
from ..codegen.errors import ConfigError, SessionError, SignatureError
from ..config import SparsifyConfig
from ..finding import Find
from ..host import Mode
from ..masks import MaskLike, by_step
from ..schedule import Schedule
from ..session import Recording, Session
from ..store import BaselineStore, Calls
from .decoders import RecordingOrDense, kept_of
from .edit import Edit, Found, Preview
from .painting import Painting
from .parts import Parts
from .randomness import Randomness, restored, saved
from .recording import Run, StepRecording
from .result import Result
from .steps import Predicted, Seen, watched
from .trail import Trail

STRENGTH = 0.6
"""Of a painted picture: the share of the steps that are made anew."""


class Editor(Closing):
    """A diffusers pipeline with a memory: calling it is calling the pipeline, and what it returns
    can be edited.

    >>> editor = Editor(pipe)
    >>> first = editor("a cat on a sofa", num_inference_steps=50)
    >>> hat = editor.edit(first, prompt="a cat with a hat on a sofa")
    >>> hat.images[0].save("hat.png")

    Denoisers, ControlNets and autoencoders are found by what they are and made sparse in place; all
    else about the pipeline stays as it is, and ``close()`` gives it its own models back. Edits of
    results from before a change of weights (an adapter that is loaded, scaled or fused) are
    refused: record again.
    """

    def __init__(
        self,
        pipe: Any,
        config: SparsifyConfig | None = None,
        *,
        store: BaselineStore | None = None,
        **overrides: Any,
    ) -> None:
        """What runs keep lies in the ``store``, by default in memory. ``overrides`` are fields of
        :class:`SparsifyConfig`. Raises :class:`ModelError` for what is no pipeline or has no
        denoiser, and :class:`ConfigError`."""
        self._config, self._store = SparsifyConfig.of(config, overrides), store
        self._pipe, self.parts = pipe, Parts(pipe, self._config)
        self._signature = inspect.signature(type(pipe).__call__)

    def __repr__(self) -> str:
        return f"<Editor of a {type(self._pipe).__name__}: {', '.join(self.parts)}>"

    def close(self) -> None:
        """The pipeline is as it was before. Results can still be looked at."""
        self.parts.close()

    def __call__(self, *args: Any, schedule: Schedule | None = None, **kwargs: Any) -> Result:
        """Runs the pipeline and records the run; by a ``schedule``, that of the denoisers. Raises
        :class:`StoreError` at the first call of a model that the store has no room for."""
        arguments = self._bound(args, kwargs)
        kept, randomness, run = saved(arguments), Randomness.now(), Run()
        modes = {name: self._recording(name, arguments, schedule, run) for name in self.parts}
        decoding = [modes[name] for name in self.parts.decoders]
        run.decoders = [mode for mode in decoding if isinstance(mode, RecordingOrDense)]
        output = self._run(arguments, modes, run.seen)
        sessions = {name: kept_of(mode) for name, mode in modes.items()}
        first = {n: mode.first_step for n, mode in modes.items() if isinstance(mode, StepRecording)}
        return Result(output, kept, sessions, run.trail, randomness, first)

    def edit(
        self,
        previous: Result,
        *,
        mask: MaskLike | Sequence[MaskLike] | None = None,
        image: Any = None,
        strength: float | None = None,
        after: int | None = None,
        margin: int = 1,
        find: Find = "latents",
        schedule: Schedule | None = None,
        keep: bool = True,
        **changes: Any,
    ) -> Result:
        """Runs the pipeline with its ``previous`` arguments but for ``changes`` of them, and
        computes only what is new. Outside of the mask the picture is the previous one.

        ``mask`` is bool [H, W] or [N, H, W], what :mod:`sparsify.masks` takes, of any size, or a
        list with one for each step. Without, it is found: the first ``after`` steps (by default a
        fifth of them) run the models, and what they change of the picture, grown by ``margin``
        sites of the latents, is the mask. With both it is what either marks.

        ``find`` says how: "latents" is where the latents differ after these steps; "attention" what
        the picture attends to the words that changed, and did to those that are gone; "reference"
        where the picture that the model predicts is unlike the previous one. A tuple of these is
        their union.

        ``image`` and ``strength`` are the pipeline's arguments where it has these. Else ``image``
        is the previous picture, painted on, and this share of the steps, by default 0.6, is made
        anew from it, inside of ``mask``, by default what was painted.

        With ``schedule`` only its key steps run the denoisers. With ``keep`` the result can be
        edited in turn. Raises :class:`SessionError` for what was not kept and for runs that do not
        fit, :class:`ConfigError`, :class:`MaskError`, :class:`BaselineError` once weights have
        changed, and :class:`StoreError`.
        """
        changes, own = self._divided(changes, image=image, strength=strength)
        edit = self._begun(previous, changes, schedule, keep)
        painting = self._painting(edit, own["image"])
        strength = STRENGTH if painting is not None and strength is None else own["strength"]
        start = 0 if strength is None else _start(previous.trail, strength)
        if mask is None and painting is not None:
            mask = painting.mask
        scope = edit.scope(by_step(mask), after, margin, start, find=find)
        edit.begin(scope, None if painting is None else painting.begun)
        return edit.result(self._again(edit))

    def preview(
        self,
        previous: Result,
        *,
        strength: float | None = None,
        after: int | None = None,
        margin: int = 1,
        find: Find = "latents",
        **changes: Any,
    ) -> Tensor:
        """bool [N, H, W], at the sites of the latents: the mask that :meth:`edit` finds with these
        arguments. Runs as many steps as that takes."""
        changes, own = self._divided(changes, strength=strength)
        start = 0 if own["strength"] is None else _start(previous.trail, own["strength"])
        edit = self._begun(previous, changes, None, keep=False)
        scope = edit.scope([], after, margin, start, kind=Preview, find=find)
        edit.begin(scope)
        with suppress(Found):
            self._again(edit)
        return scope.mask

    def _bound(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of a call by name. Raises :class:`SignatureError`."""
        try:
            arguments = self._signature.bind_partial(self._pipe, *args, **kwargs).arguments
        except TypeError as error:
            raise SignatureError(f"{type(self._pipe).__name__}: {error}") from None
        del arguments[next(iter(self._signature.parameters))]
        for own in self._signature.parameters.values():
            if own.kind is own.VAR_KEYWORD:
                arguments |= arguments.pop(own.name, {})
        return arguments

    def _recording(
        self, name: str, arguments: Mapping[str, Any], schedule: Schedule | None, run: Run
    ) -> Recording:
        host = self.parts[name]._engine
        if name not in self.parts.stepped:
            return RecordingOrDense(name, Session(host, Calls.of(self._store, None)))
        expected = self._expected(arguments)
        return StepRecording(
            Session(host, Calls.of(self._store, expected, schedule)), schedule, run.trail
        )

    def _expected(self, arguments: Mapping[str, Any]) -> int | None:
        """At least so many calls of a denoiser; None where arguments make it fewer steps."""
        known = self._signature.parameters
        others = arguments.keys() & {"strength", "timesteps", "sigmas", "denoising_end"}
        if others or "strength" in known or len(self.parts.stepped) > 1:
            return None
        default = known.get("num_inference_steps")
        steps: int | None = arguments.get("num_inference_steps", default and default.default)
        return steps

    def _run(
        self,
        arguments: Mapping[str, Any],
        modes: Mapping[str, Mode],
        seen: Seen,
        predicted: Predicted | None = None,
    ) -> Any:
        for name in modes:
            if not self.parts.is_in_place(name):
                raise SessionError(
                    f"pipe.{name} is not the model of this editor any more: make another Editor"
                )
        with ExitStack() as stack:
            stack.enter_context(watched(self._pipe.scheduler, seen, predicted))
            for name, mode in modes.items():
                stack.enter_context(self.parts[name]._engine.mode_of(mode))
            return self._pipe(**arguments)

    def _again(self, edit: Edit) -> Any:
        """What the pipeline gives, with the random numbers of the first run."""
        with edit.previous.randomness.again():
            arguments = restored(edit.arguments)
            return self._run(arguments, edit.modes, edit.trail.seen, edit.predicted)

    def _begun(
        self, previous: Result, changes: dict[str, Any], schedule: Schedule | None, keep: bool
    ) -> Edit:
        arguments = {**previous.arguments, **saved(changes)}
        return Edit(self._pipe, previous, arguments, self.parts, self._config, schedule, keep)

    def _divided(
        self, changes: dict[str, Any], **given: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The changes of the pipeline's arguments, with those of the ``given`` ones that it takes;
        and the others, or None."""
        changes = self._named(changes)
        takes = self._signature.parameters
        own = {name: None if name in takes else value for name, value in given.items()}
        theirs = {n: value for n, value in given.items() if n in takes and value is not None}
        return {**changes, **theirs}, own

    def _named(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Raises :class:`SignatureError` for what the pipeline would leave unread, as some do."""
        takes = self._signature.parameters.values()
        names = [own.name for own in takes if own.kind is not own.VAR_KEYWORD][1:]
        for name in changes:
            if name not in names:
                raise SignatureError(
                    f"{type(self._pipe).__name__} takes no {name!r}: one of {', '.join(names)}"
                )
        return dict(changes)

    def _painting(self, edit: Edit, image: Any) -> Painting | None:
        if image is None:
            return None
        if edit.decoded is None:
            raise SessionError(
                "this result has no picture that a decoder made: nothing to paint on"
            )
        name, known = edit.decoded
        recorded = edit.previous.trail
        autoencoder = self.parts[name], self.parts.get(f"{name}.encoder")
        return Painting(self._pipe, *autoencoder, edit.lattice, recorded, known, image)


def _start(trail: Trail, strength: float) -> int:
    """The first step that is made anew."""
    if not 0 < strength <= 1:
        raise ConfigError(f"strength={strength}: a share of the steps, above 0 and at most 1")
    return trail.steps - max(1, int(trail.steps * strength))
