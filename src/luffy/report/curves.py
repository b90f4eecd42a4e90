"""From runs to the points of a curve: mean and band of a quantity over the seeds of each method.

A point is `{"m": method, "s": step, "t": tokens processed, "v": mean, "l": low, "h": high}`; `l` and `h` are absent
where one seed leaves nothing to say. Long series are averaged over consecutive steps, never thinned out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from luffy.comparison.collect import Comparison, Evaluation, Run, accuracy_interval, is_number

Point = dict[str, Any]

MOST_POINTS = 60  # of a line; more steps than that are averaged
RESAMPLES = 500  # for bands; the table uses more


@dataclass(frozen=True, slots=True)
class Curve:
    """A chart of the page: one quantity, one line a method."""

    title: str
    explanation: str
    points: list[Point]
    unit: Literal["share", "number"] = "number"
    whole: bool = False  # the axis shows all of 0 to 100 %

    @property
    def has_band(self) -> bool:
        """Whether any point has a low and a high end."""
        return any("l" in point for point in self.points)


@dataclass(frozen=True, slots=True)
class Quantity:
    """A training metric worth a chart."""

    metric: str
    title: str
    explanation: str
    unit: Literal["share", "number"] = "number"
    whole: bool = False


QUANTITIES: tuple[Quantity, ...] = (
    Quantity("reward/on_policy", "Reward of own rollouts", "Share of sampled rollouts that are right.", "share", True),
    Quantity("groups/all_failed", "Groups without success", "Share of problems no own rollout solves.", "share", True),
    Quantity("reward/traces", "Reward of the traces", "Share of traces that the verifier accepts.", "share", True),
    Quantity("guidance/trace_advantage", "Advantage of the traces", "High: imitation. Near zero: own exploration."),
    Quantity("guidance/trace_probability", "Probability of trace tokens", "Mean, under the policy.", "share", True),
    Quantity("policy/entropy", "Entropy", "Of the policy on its own rollouts, in nats a token."),
    Quantity("completion/length", "Length", "Mean length of own rollouts, in tokens."),
    Quantity("completion/truncated", "Cut off", "Share of own rollouts that hit the length limit.", "share"),
    Quantity("update/gradient_norm", "Gradient norm", "Before it is scaled down to the limit."),
    Quantity("policy/engine_gap", "Engine gap", "Log-probs of engine against trainer, mean absolute difference."),
)
TIMES = ("generate", "verify", "update", "synchronise")


def training_curves(comparison: Comparison) -> list[Curve]:
    """One curve for each quantity that any run has measured."""
    curves = []
    for quantity in QUANTITIES:
        points = [
            point
            for method, runs in comparison.methods.items()
            for point in _training_points(method, runs, quantity.metric)
        ]
        if points:
            curves.append(Curve(quantity.title, quantity.explanation, points, quantity.unit, quantity.whole))
    return curves


def accuracy_curves(comparison: Comparison) -> list[Curve]:
    """Accuracy on every set that was watched during the run, with its interval over problems and seeds."""
    curves = []
    for name in comparison.sets:
        points = _evaluation_points(comparison, name)
        if len({point["s"] for point in points}) > 2:
            title = f"Accuracy on {name.rpartition('/')[2]}"
            curves.append(Curve(title, f"Share of problems of {name} solved.", points, "share", whole=True))
    return curves


def style_curves(comparison: Comparison) -> list[Curve]:
    """On the miniature: how much of the teacher's wording is taken over, on watched sets of the trained kind."""
    curves = []
    for name in comparison.sets:
        points = []
        for method, runs in comparison.methods.items():
            for step, found in _by_step(runs, name).items():
                values = [one.metrics.get("style/teacher") for one in found]
                numbers = [float(value) for value in values if is_number(value)]
                if numbers:
                    points.append(point_of(method, step, found[0].processed, numbers))
        watched = len({point["s"] for point in points}) > 2
        if watched and max(point["v"] for point in points) > 0:
            title = f"Teacher's style on {name.rpartition('/')[2]}"
            curves.append(Curve(title, "Share of completions worded like the traces.", points, "share", whole=True))
    return curves


def time_parts(comparison: Comparison) -> list[Point]:
    """Mean seconds a step of each method by what they went into: `{"m": method, "part", "v": seconds}`."""
    points = []
    for method, runs in comparison.methods.items():
        means = {part: _mean(run.series(f"time/{part}") for run in runs) for part in (*TIMES, "step")}
        steps = sum(len(run.metrics) for run in runs)
        counted = {part: (means[part] or 0) * _share(runs, f"time/{part}", steps) for part in means}
        parts = {part: counted[part] for part in TIMES if means[part] is not None}
        if means["step"] is not None:
            parts["other"] = max(0.0, counted["step"] - sum(parts.values()))
        points += [{"m": method, "part": part, "v": _rounded(value)} for part, value in parts.items()]
    return points


def _mean(series: Iterable[Sequence[float]]) -> float | None:
    values = [value for one in series for value in one]
    return sum(values) / len(values) if values else None


def _share(runs: Sequence[Run], metric: str, steps: int) -> float:
    """Share of all steps that have a metric: supervised steps generate nothing."""
    return sum(len(run.series(metric)) for run in runs) / steps if steps else 0.0


def _training_points(method: str, runs: Sequence[Run], metric: str) -> list[Point]:
    """Mean over seeds and consecutive steps, with the range of the seeds as band."""
    lines = [{int(line["step"]): line for line in run.metrics if is_number(line.get(metric))} for run in runs]
    steps = sorted({step for line in lines for step in line})
    width = math.ceil(len(steps) / MOST_POINTS)
    points = []
    for start in range(0, len(steps), max(1, width)):
        chunk = steps[start : start + width]
        rows = [[line[step] for step in chunk if step in line] for line in lines]
        values = [float(np.mean([one[metric] for one in row])) for row in rows if row]
        tokens = [processed(one) for row in rows for one in row]
        points.append(point_of(method, round(float(np.mean(chunk)), 1), float(np.mean(tokens)), values))
    return points


def processed(line: Mapping[str, Any]) -> float:
    """Tokens trained and generated up to a step; line: its metrics."""
    return sum(float(line.get(f"tokens/{key}") or 0) for key in ("trained", "generated"))


def point_of(method: str, step: float, tokens: float, values: Sequence[float]) -> Point:
    """A point of a curve from one value a seed: their mean, with their range as band."""
    point: Point = {"m": method, "s": step, "t": round(tokens), "v": _rounded(float(np.mean(values)))}
    return point | {"l": _rounded(min(values)), "h": _rounded(max(values))} if len(values) > 1 else point


def steps_of_set(runs: Sequence[Run], name: str) -> dict[int, list[tuple[Run, Evaluation]]]:
    """Evaluations of a set by step, for steps that every run that got so far has; the others would bend the mean."""
    found: dict[int, list[tuple[Run, Evaluation]]] = {}
    for run in runs:
        for evaluation in run.of_set(name):
            found.setdefault(evaluation.step, []).append((run, evaluation))
    reached = {step: sum(run.steps >= step for run in runs) for step in found}
    return {step: found[step] for step in sorted(found) if len(found[step]) >= reached[step]}


def _by_step(runs: Sequence[Run], name: str) -> dict[int, list[Evaluation]]:
    return {step: [evaluation for _, evaluation in found] for step, found in steps_of_set(runs, name).items()}


def _evaluation_points(comparison: Comparison, name: str) -> list[Point]:
    points = []
    for method, runs in comparison.methods.items():
        for step, found in _by_step(runs, name).items():
            tokens = round(float(np.mean([evaluation.processed for evaluation in found])))
            point: Point = {"m": method, "s": step, "t": tokens}
            interval = accuracy_interval(found, resamples=RESAMPLES)
            if interval is not None:
                ends = {"v": interval.value, "l": interval.low, "h": interval.high}
                points.append(point | {key: _rounded(value) for key, value in ends.items()})
    return points


def _rounded(value: float) -> float:
    """Four significant digits: what a chart can show."""
    return float(f"{value:.4g}")
