"""The balance of imitation and exploration over time: who carries the advantage, what is learned when, what is lost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luffy.comparison.collect import BASE, Comparison, Outcomes, Run
from luffy.evaluation.statistics import paired_difference
from luffy.files import read_lines
from luffy.report.curves import Curve, Point, point_of, processed, steps_of_set
from luffy.report.groups import hundredths, read_groups, saved_files, thinned
from luffy.report.palette import Look

THIRDS = ("short", "medium", "long")
LONGEST_TRACE = 300  # tokens of a watched trace that are shown
TRACE_STEPS = 30  # at most, evenly
SHARE_STEPS, SHARE_POINTS = 40, 10  # saved steps of a run that the shares are made of, evenly, and points of a line
LEAST_SOLVED = 5  # problems that the base must solve for a share of them to be shown

Groups = Mapping[int, Sequence[Mapping[str, Any]]]  # step -> lines of the file


def dynamics_curves(comparison: Comparison) -> list[Curve]:
    """Share of the positive advantage from traces, by difficulty; what the base knew and the policy still knows."""
    return [*_advantage_curves(comparison), *_kept_curves(comparison)]


# -- who carries the advantage


def _advantage_curves(comparison: Comparison) -> list[Curve]:
    """One curve a third of the problems, easy to hard: by the length of their traces, which no method can change."""
    saved = {method: [_saved_groups(run) for run in runs] for method, runs in comparison.methods.items()}
    every = [group for runs in saved.values() for groups in runs for lines in groups.values() for group in lines]
    lengths = {_identifier(group): length for group in every if (length := _trace_length(group)) is not None}
    if len(set(lengths.values())) < len(THIRDS):
        return []
    ends = np.quantile(list(lengths.values()), [1 / 3, 2 / 3])
    third_of = {name: THIRDS[int(np.searchsorted(ends, length))] for name, length in lengths.items()}
    curves = []
    for third in THIRDS:
        points = [
            point
            for method, groups in saved.items()
            for point in _share_points(method, comparison.methods[method], groups, third_of, third)
        ]
        if points:
            size = sum(found == third for found in third_of.values())
            curves.append(
                Curve(
                    f"Traces' share: {third} problems",
                    f"Of the positive advantage, what traces carry; {size} problems with {third} traces.",
                    points,
                    "share",
                    whole=True,
                )
            )
    return curves


def _saved_groups(run: Run) -> Groups:
    return {step: read_groups(path) for step, path in thinned(saved_files([run], "rollouts"), SHARE_STEPS)}


def _identifier(group: Mapping[str, Any]) -> str:
    return str((group.get("problem") or {}).get("id", ""))


def _trace_length(group: Mapping[str, Any]) -> int | None:
    return next((len(str(one.get("text", ""))) for one in group.get("rollouts") or () if one.get("off_policy")), None)


def _share_points(
    method: str, runs: Sequence[Run], saved: Sequence[Groups], third_of: Mapping[str, str], third: str
) -> list[Point]:
    """Mean over seeds and a few consecutive saved steps."""
    steps = sorted({step for groups in saved for step in groups})
    width = math.ceil(len(steps) / SHARE_POINTS)
    points = []
    for start in range(0, len(steps), max(1, width)):
        chunk = steps[start : start + width]
        values: list[float] = []
        tokens: list[float] = []
        for run, groups in zip(runs, saved, strict=True):
            chosen = [one for step in chunk for one in groups.get(step, ()) if third_of.get(_identifier(one)) == third]
            share = trace_share(chosen)
            if share is not None:
                values.append(share)
                tokens += [processed(line) for line in run.metrics if int(line["step"]) in chunk]
        if values:
            points.append(point_of(method, round(float(np.mean(chunk)), 1), float(np.mean(tokens or [0])), values))
    return points


def trace_share(groups: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the positive advantage of the groups that belongs to traces.

    None where no group has a trace in it, or nothing has a positive advantage.
    """
    members = [one for group in groups for one in group.get("rollouts") or ()]
    positive = [(max(0.0, float(one.get("advantage") or 0)), bool(one.get("off_policy"))) for one in members]
    total = sum(value for value, _ in positive)
    if not total or not any(off_policy for _, off_policy in positive):
        return None
    return sum(value for value, off_policy in positive if off_policy) / total


# -- which tokens of a trace are learned when


def learned_traces(comparison: Comparison) -> list[dict[str, Any]]:
    """`{"problem", "tokens", "methods": {NAME: {"steps", "logprobs": [steps][tokens] in hundredths of a nat}}}`."""
    traces: dict[str, dict[str, Any]] = {}
    for method, runs in comparison.methods.items():
        for step, path in thinned(saved_files(runs, "traces"), TRACE_STEPS):
            for line in read_lines(path):
                tokens, logprobs = line.get("tokens") or [], line.get("logprobs") or []
                shown = [str(token) for token in tokens[:LONGEST_TRACE]]
                problem = str(line.get("problem", ""))
                trace = traces.setdefault(problem, {"problem": problem, "tokens": shown, "methods": {}})
                if shown != trace["tokens"] or len(tokens) != len(logprobs):
                    continue  # another tokenizer's
                rows = trace["methods"].setdefault(method, {"steps": [], "logprobs": []})
                rows["steps"].append(step)
                rows["logprobs"].append(hundredths(logprobs[:LONGEST_TRACE]))
    return [trace for trace in traces.values() if trace["methods"]]


# -- what is lost


def _kept_curves(comparison: Comparison) -> list[Curve]:
    """On each watched set: of the problems that the base solves, the share still solved."""
    curves = []
    for name in comparison.sets:
        points = []
        for method, runs in comparison.methods.items():
            for step, found in steps_of_set(runs, name).items():
                shares = [share for run, one in found if (share := _kept(run, name, one.outcomes)) is not None]
                if shares:
                    points.append(point_of(method, step, float(np.mean([one.processed for _, one in found])), shares))
        if len({point["s"] for point in points}) > 2:
            short = name.rpartition("/")[2]
            explanation = f"Of the problems of {name} that the base solves, the share still solved."
            curves.append(Curve(f"Still known: {short}", explanation, points, "share", whole=True))
    return curves


def _kept(run: Run, name: str, outcomes: Outcomes) -> float | None:
    base = run.base(name)
    solved = [problem for problem, share in (base.outcomes if base else {}).items() if share > 0.5]
    present = [outcomes[problem] for problem in solved if problem in outcomes]
    return float(np.mean(present)) if len(present) >= LEAST_SOLVED else None


def forgetting_table(comparison: Comparison, methods: Mapping[str, Look]) -> list[dict[str, Any]]:
    """For each set and method, the difference of the final models to the base in points, paired by problem."""
    rows = []
    for name in comparison.sets:
        cells = {method: _against_base(comparison, method, name) for method in methods}
        if any(cells.values()):
            rows.append({"set": name, "cells": list(cells.values())})
    return rows


def _against_base(comparison: Comparison, method: str, name: str) -> dict[str, str] | None:
    pair = comparison.accuracies([method, BASE], name)
    if pair is None:
        return None
    final, base = pair
    interval = paired_difference(final, base)
    return {
        "value": f"{100 * interval.value:+.1f}",
        "interval": f"{100 * interval.low:+.1f} to {100 * interval.high:+.1f}",
        "state": "fails" if interval.high < 0 else "holds" if interval.low > 0 else "",
        "lost": f"{100 * float((final < base).mean()):.0f} %",
        "won": f"{100 * float((final > base).mean()):.0f} %",
    }
