"""A graph that runs at once, and faster once another process has compiled it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from threading import Lock, RLock, Thread
from typing import Any

from torch.fx import GraphModule

from ..emit import Emitted
from ..errors import CompileError, SparsifyWarning
from .job import Job, expected_seconds
from .native import Native
from .packages import Packages, default_folder

PAYS_AFTER = 0.25
"""Of the time that compiling is expected to take: so long a graph has to have run before."""
_ONE_AT_A_TIME = Lock()
_COMMAND = "-m", f"{__package__}.worker"
Tell = Callable[[str], None]


class InBackground(Emitted):
    """Runs ``module`` as it is until compiled code for calls like these is there: in the cache, or
    made by another process as soon as the calls so far say that it pays. ``sizes`` and ``most`` are
    those of :class:`.emit.Compiled`. A failure costs a warning that calls the graph ``name``."""

    def __init__(
        self,
        module: GraphModule,
        sizes: Mapping[int, int],
        most: int | None,
        name: str,
    ) -> None:
        super().__init__(module)
        self._name, self._sizes, self._most = name, sizes, most
        self._native: Native | None = None
        self._job: Job | None = None
        self._seconds, self._pays_after = 0.0, PAYS_AFTER * expected_seconds(module.graph)
        self._started, self._failure = False, ""
        self._lock = RLock()

    @property
    def source(self) -> str:
        return super().source if self._native is None else self._native.source

    def ahead(self, inputs: Sequence[Any], tell: Tell) -> None:
        """Compiles it now, for calls like this one. Raises :class:`CompileError`."""
        self._look(inputs)
        if self._native is None and not self._failure:
            self._started = True
            self._compile(tell)
        if failure := self._untold():
            raise CompileError(failure)

    def __call__(self, *inputs: Any) -> Any:
        if failure := self._untold():
            warnings.warn(failure, SparsifyWarning, stacklevel=2)
        native = self._native
        if native is not None and native.takes(inputs):
            try:
                return native(inputs)
            except RuntimeError as error:  # if these inputs are at fault, they are below, too
                self._native = native = None
                self._fail(str(error))
        if self._job is None and not self._started:
            self._look(inputs)
        start = time.perf_counter()
        result = super().__call__(*inputs)
        self._seconds += time.perf_counter() - start
        if self._seconds > self._pays_after and native is None:
            self._start()
        return result

    def forget(self) -> None:
        with self._lock:
            native = self._native
            if native is not None and not native.bind(self._module):
                self._native, self._job, self._started = None, None, False

    def _look(self, inputs: Sequence[Any]) -> None:
        """For what was compiled before."""
        with self._lock:
            if self._job is not None:
                return
            try:
                job = Job.of(self._module, inputs, self._sizes, self._most)
                path = Packages(default_folder()).find(job.key)
            except CompileError as error:
                self._fail(str(error))
                return
            self._job = job
            if path is not None:
                self._take(path, job)

    def _start(self) -> None:
        with self._lock:
            if self._started:
                return
            self._started = True
        Thread(target=self._compile, daemon=True, name=f"compiling the {self._name}").start()

    def _compile(self, tell: Tell = lambda stage: None) -> None:
        job, packages = self._job, Packages(default_folder())
        assert job is not None
        try:
            with _ONE_AT_A_TIME:
                path = packages.find(job.key)
                if path is None:
                    with packages.making(job.key) as folder:
                        (folder / "job.json").write_text(job.text)
                        _run_worker(folder, tell)
                    path = packages.find(job.key)
            if path is not None:
                self._take(path, job)
        except (OSError, CompileError) as error:
            self._fail(str(error))

    def _take(self, path: Path, job: Job) -> None:
        try:
            native = Native(path, job)
        except RuntimeError as error:
            self._fail(str(error))
            return
        with self._lock:
            if native.bind(self._module):
                self._native = native
            else:  # the weights have changed meanwhile
                self._job, self._started = None, False

    def _untold(self) -> str:
        """What failed, once."""
        failure, self._failure = self._failure, ""
        return failure

    def _fail(self, reason: str) -> None:
        """Nothing is started any more."""
        self._started = True
        line = reason.strip().split("\n")[0]
        self._failure = (
            f"the {self._name} cannot be compiled and runs uncompiled, slower: {line} "
            '(backend="eager" says nothing)'
        )


def _run_worker(folder: Path, tell: Tell) -> None:
    """Raises :class:`CompileError` with the last that it said, if it fails or is killed."""
    command = [sys.executable, *_COMMAND, "job.json", "package.pt2"]
    paths = (str(Path(path).absolute()) for path in sys.path)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with (
        (folder / "errors").open("w+") as errors,
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            tell(line.strip())
        if process.wait():
            errors.seek(0)
            said = [line.strip() for line in errors if line.strip()]
            raise CompileError(said[-1] if said else f"ended with {process.returncode}")
