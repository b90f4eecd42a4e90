"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up seconds by part of a step: `with clock("generate"): ...`; a block within a block counts once, there."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._within = 0.0  # seconds of blocks inside the current one
        self._started = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Time the block as a piece of `part`."""
        started, around, self._within = time.perf_counter(), self._within, 0.0
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._seconds[part] += seconds - self._within
            self._within = around + seconds

    def metrics(self) -> dict[str, float]:
        """`time/PART` in seconds, and `time/step` since the clock was made."""
        parts = {f"time/{part}": seconds for part, seconds in self._seconds.items()}
        return parts | {"time/step": time.perf_counter() - self._started}
