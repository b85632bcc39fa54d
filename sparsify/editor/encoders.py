"""Encoders: a picture that is given anew is encoded where it differs from the recorded one."""

from __future__ import annotations

from collections.abc import Sequence

from ..baseline import Baseline
from ..editing import Edits
from ..host import Host
from ..plan import Plan
from ..scope import Scope
from ..signature import Call


class EncoderEdits(Edits):
    """The mode of an encoder in an edited run: its masks are what differs, whatever that of the run
    may be, which is perhaps not found yet."""

    def __init__(
        self, host: Host, recorded: Sequence[Baseline], kept: list[Baseline] | None = None
    ) -> None:
        super().__init__(host, recorded, Scope([]), kept=kept)
        self._plans: dict[int, Plan] = {}

    def _with_changes(self, number: int, call: Call) -> Plan:
        self._plans[number] = Plan(self._changed(number, call))
        return self._plans[number]

    def _plan(self, number: int) -> Plan:
        return self._plans[number]
