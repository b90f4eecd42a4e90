"""What doubling costs: the length, the group, the vocabulary, on a model of 6 million parameters.

`python benchmarks/doubling.py`. Time grows with size to the power of the exponent; goal: at most 1.1, below 8,000
tokens a batch. The figure is the slope over the whole range; in brackets the least and the largest of one doubling.
Groups of equal lengths, a prompt of 20 tokens; an update is `Learner.update`, generation is the engine's without any
end.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from functools import partial
from typing import Any

from measuring import outcome, report, seconds
from update import make_groups, start_learner
from workload import PAD, SHAPES

from luffy.rollout import Sampling, TransformersEngine

PROMPT, REPEATS = 20, 5
LENGTH, GROUP, VOCABULARY = 128, 4, 1024  # where they are not doubled
DOUBLED = {
    "length": (128, 256, 512, 1024),
    "group": (4, 8, 16, 32),
    "vocabulary": (4096, 8192, 16384, 32768),
}


def exponent(sizes: tuple[int, ...], times: list[float]) -> dict[str, float]:
    """Slope of time over size, both as logarithms; between which it lies from one size to the next."""
    x, y = [math.log2(size) for size in sizes], [math.log2(one) for one in times]
    slope = statistics.linear_regression(x, y).slope
    steps = [(y[k + 1] - y[k]) / (x[k + 1] - x[k]) for k in range(len(x) - 1)]
    return {"median": slope, "low": min(steps), "high": max(steps)}


def times_at(what: str, size: int) -> tuple[float, float]:
    """Median seconds of an update and of generation."""
    length = size if what == "length" else LENGTH
    group = size if what == "group" else GROUP
    shape = replace(SHAPES["small"], vocabulary=size if what == "vocabulary" else VOCABULARY)
    learner = start_learner(shape, {"rollout.max_tokens": length})
    groups = make_groups(shape, [[length] * group], PROMPT, traces=0)
    engine = TransformersEngine(learner.policy, eos_ids=[-1], pad_id=PAD)  # no token ends a completion
    prompts = [list(groups[0].rollouts[0].prompt_ids)]
    update_s, generate_s = seconds(
        partial(learner.update, groups, 0),
        partial(engine.generate, prompts, group, Sampling(length)),
        repeats=REPEATS,
    )
    return statistics.median(update_s), statistics.median(generate_s)


def main() -> None:
    """Measure all."""
    rows: list[dict[str, Any]] = []
    raw: dict[str, Any] = {}
    for what, sizes in DOUBLED.items():
        update_s, generate_s = zip(*(times_at(what, size) for size in sizes), strict=True)
        raw[what] = {"sizes": sizes, "update, s": update_s, "generation, s": generate_s}
        for part, times in (("update", update_s), ("generation", generate_s)):
            note = ", ".join(f"{size}: {one:.2f} s" for size, one in zip(sizes, times, strict=True))
            rows.append(
                outcome(f"{part}, {what} doubled: exponent", "size", exponent(sizes, list(times)), "<= 1.1", note=note)
            )
    report("doubling", rows, seconds=raw)


if __name__ == "__main__":
    main()
