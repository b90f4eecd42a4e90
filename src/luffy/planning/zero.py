"""What the stages of DeepSpeed's ZeRO take of memory.

By what DeepSpeed's code holds, not by measurements: beside the weights a copy in float32 of the part that its optimizer
changes, a bucket of gradients that are summed, and a part of all gradients as one tensor while the step is taken.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luffy.planning.memory import Memory

BUCKET = 2**28  # bytes of gradients that are summed at once
GATHERED = 2**30  # bytes of weights that stage 3 holds whole at once


def split_by_zero(memory: Memory, stage: int, devices: int, *, trained: float, offloaded: bool) -> Memory:
    """The memory of a device where nothing is split, as a stage splits it. The reference model stays whole.

    trained: bytes of what is trained. offloaded: whether moments and what goes with them lie on the host.
    """
    part = trained / devices
    weights = memory.weights / (devices if stage == 3 else 1)
    gathered = min(float(GATHERED), memory.weights) if stage == 3 else 0.0
    buckets = (2 if stage == 3 else 1) * min(float(BUCKET), trained)  # stage 3 sums one while it fills the next
    gradients = trained if stage == 1 else part
    if offloaded:
        host = memory.host + 4 * part + (weights if stage == 3 else 0.0)  # two moments, the copy, the gradient
        held = replace(memory, weights=0.0 if stage == 3 else weights, optimizer=0.0, host=host)
        return replace(held, gradients=trained if stage == 1 else 0.0, exchange=buckets + gathered)
    held = replace(memory, weights=weights + part, optimizer=2 * part)
    return replace(held, gradients=gradients, exchange=buckets + part + gathered)
