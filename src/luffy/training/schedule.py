"""The learning rate over a phase."""

from __future__ import annotations

import math


def learning_rate(step: int, *, peak: float, schedule: str, warmup_steps: int, steps: int) -> float:
    """The rate of step `step` (from 0) in a phase of `steps` steps.

    Rises linearly over the warm-up, then stays (`constant`) or falls to 0 at the end (`linear`, `cosine`).
    """
    if step < warmup_steps:
        return peak * (step + 1) / (warmup_steps + 1)
    if schedule == "constant":
        return peak
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return peak * (1 - progress if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress)))
