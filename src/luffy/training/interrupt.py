"""Ctrl-C and termination: finish the step, leave a checkpoint, stop. A second Ctrl-C stops at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self

CTRL_C, TERMINATION = "Ctrl-C", "termination requested"  # reasons, also in `summary.json`


class Interrupt:
    """While in its `with` block, notes SIGINT and SIGTERM instead of dying in the middle of a step."""

    def __init__(self) -> None:
        self.reason = ""
        self._before: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether the run was asked to stop."""
        return bool(self.reason)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python handles signals there alone
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.reason = CTRL_C if number == signal.SIGINT else TERMINATION
