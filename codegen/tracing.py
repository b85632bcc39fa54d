"""An export is the whole process's: torch sets flags by which compiled code of every thread goes,
and patches how modules are called. So one runs at a time, and nothing compiled beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition, get_ident


class _Gate:
    def __init__(self) -> None:
        self._changed = Condition()
        self._calls = 0
        self._tracer: int | None = None

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Waits for the compiled calls that are under way, and holds up others. May be nested."""
        own = get_ident()
        if self._tracer == own:
            yield
            return
        with self._changed:
            self._changed.wait_for(lambda: self._tracer is None)
            self._tracer = own
            self._changed.wait_for(lambda: not self._calls)
        try:
            yield
        finally:
            with self._changed:
                self._tracer = None
                self._changed.notify_all()

    @contextmanager
    def beside_no_trace(self) -> Iterator[None]:
        """For a compiled call: waits while another thread traces."""
        own = get_ident()
        with self._changed:
            self._changed.wait_for(lambda: self._tracer in (None, own))
            self._calls += 1
        try:
            yield
        finally:
            with self._changed:
                self._calls -= 1
                self._changed.notify_all()


_GATE = _Gate()
alone, beside_no_trace = _GATE.alone, _GATE.beside_no_trace
