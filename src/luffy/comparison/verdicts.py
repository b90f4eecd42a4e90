"""From run folders to `comparison.json`: the table with its intervals, and the verdict on each claim.

    {"methods": {NAME: {"seeds", "evaluations": {SET: {METRIC: {"value", "low", "high", "n"}}}, "tokens", "seconds"}},
     "verdicts": [{"claim", "set", "difference", "low", "high", "verdict", ...}],
     "unjudged": [{"claim", "set", "reason"}], "base": {SET: {METRIC: ...}},
     "best": {SET: NAME or null}, "at_equal_tokens": {"tokens", "evaluations"}, "incomplete": [...], "notes": [...]}

Only finished runs count. Accuracies are shares. Every interval is a 95 % interval by itself; nothing is corrected for
the number of claims.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luffy.comparison.claims import CLAIMS, DIRECT, TRAINING, Claim, Measure, Role, set_roles
from luffy.comparison.collect import (
    BASE,
    Comparison,
    Evaluation,
    Outcomes,
    Run,
    accuracy_interval,
    align,
    read_comparison,
    summarise,
)
from luffy.evaluation.statistics import Interval, paired_difference, seeds_difference, seeds_interval
from luffy.files import write_whole

__all__ = ["CLAIMS", "Claim", "build_comparison", "compare_runs", "judge_claims", "write_comparison"]

WATCHED = 3  # fewer evaluations than this of a set (start and end) say nothing about the course of a run
FIFTH = 5  # "the beginning" and "the end" of a run are its first and last fifth

# why a claim cannot be judged
NO_SAMPLES = "the samples of the evaluations are not on disk (RUN/evaluations), without which no problem is compared"
NO_PROBLEM = "the runs were not measured on the same problems"
NOT_MEASURED = "not every method of it was measured"
NOT_WATCHED = f"it takes {WATCHED} evaluations of the set during every run"
ONE_SEED = "it takes two seeds of each method"
TOO_SHORT = f"it takes {2 * FIFTH} steps with traces of every run"


def build_comparison(folder: Path) -> dict[str, Any]:
    """The content of `comparison.json` for COMPARISON/METHOD/seed-K. Raises RunError where there is no run."""
    return compare_runs(read_comparison(folder))


def write_comparison(folder: Path) -> Path:
    """Write `comparison.json` into the folder, whole or not at all, and return its path."""
    text = json.dumps(build_comparison(folder), indent=2, allow_nan=False) + "\n"
    return write_whole(folder / "comparison.json", text.encode())


def compare_runs(comparison: Comparison) -> dict[str, Any]:
    """The content of `comparison.json` for runs at hand."""
    methods = [method for method in comparison.methods if comparison.finished(method)]
    verdicts, unjudged = judge_claims(comparison)
    return {
        "methods": {method: _method_entry(comparison, method) for method in methods},
        "verdicts": verdicts,
        "unjudged": unjudged,
        "base": _evaluations(comparison, BASE),
        "best": {name: best_method(comparison, methods, name) for name in comparison.sets},
        "at_equal_tokens": at_equal_tokens(comparison),
        "incomplete": list(comparison.incomplete),
        "notes": _notes(comparison),
    }


def judge_claims(comparison: Comparison) -> tuple[list[dict[str, Any]], list[dict[str, str]]]:
    """The verdict on every claim whose methods and sets are there; and those that cannot be judged, with the reason."""
    runs = comparison.runs
    roles = set_roles(comparison.sets, runs[0].config if runs else {})
    verdicts: list[dict[str, Any]] = []
    unjudged: list[dict[str, str]] = []
    for claim in CLAIMS:
        for name in _sets_of(claim, comparison, roles):
            found = _MEASURES[claim.measure](comparison, claim, name)
            if isinstance(found, Interval):
                verdicts.append(_verdict(claim, comparison, name, found))
            else:
                unjudged.append({"claim": claim.text, "set": name, "reason": found})
    return verdicts, unjudged


def _sets_of(claim: Claim, comparison: Comparison, roles: dict[str, Role]) -> list[str]:
    """The sets that a claim is about here; none where a method of it is missing."""
    present = {BASE, "", *(method for method in comparison.methods if comparison.finished(method))}
    if not {claim.method, claim.rival} <= present:
        return []
    if claim.measure not in DIRECT:
        return [TRAINING]
    names = [name for name, role in roles.items() if role is claim.role]
    return [name for name in names if _base_is_below(comparison, name, claim.base_below)]


def _base_is_below(comparison: Comparison, name: str, share: float) -> bool:
    base = accuracy_interval(comparison.final(BASE, name))
    return share >= 1 or (base is not None and base.value < share)


def _verdict(claim: Claim, comparison: Comparison, name: str, interval: Interval) -> dict[str, Any]:
    seeds = [len(comparison.finished(method)) for method in (claim.method, claim.rival) if method not in (BASE, "")]
    return {
        "claim": claim.text,
        "set": name,
        "difference": interval.value,
        "low": interval.low,
        "high": interval.high,
        "verdict": claim.judge(interval.low, interval.high),
        "measure": str(claim.measure),
        "method": claim.method,
        "rival": claim.rival,
        "threshold": claim.threshold,
        "side": claim.side,
        "seeds": min(seeds),
        "source": claim.source,
    }


def _accuracy(comparison: Comparison, claim: Claim, name: str) -> Interval | str:
    """Difference of the final accuracies."""
    finals = [comparison.final(method, name) for method in (claim.method, claim.rival)]
    return _paired([[evaluation.outcomes for evaluation in seeds] for seeds in finals])


def _speed(comparison: Comparison, claim: Claim, name: str) -> Interval | str:
    """Difference of the mean accuracy over the course of the run, for sets that were watched during it."""
    runs = [comparison.finished(method) for method in (claim.method, claim.rival)]
    courses = [[run.of_set(name) for run in seeds] for seeds in runs]
    if any(len(course) < WATCHED for seeds in courses for course in seeds):
        return NOT_WATCHED
    return _paired([[_over_course(course) for course in seeds] for seeds in courses])


def _paired(pair: Sequence[Sequence[Outcomes]]) -> Interval | str:
    """Difference of two methods problem by problem, or why there is none. pair: for each method, one a seed."""
    if not all(pair):
        return NOT_MEASURED
    rows = align(pair)
    if rows is not None:
        return paired_difference(*rows)
    return NO_PROBLEM if all(outcomes for seeds in pair for outcomes in seeds) else NO_SAMPLES


def _over_course(course: Sequence[Evaluation]) -> Outcomes:
    """Each problem's outcome averaged over the steps, by trapezoids."""
    steps = np.array([evaluation.step for evaluation in course], dtype=np.float64)
    gaps = np.diff(steps) / (steps[-1] - steps[0])
    weights = (np.append(gaps, 0) + np.insert(gaps, 0, 0)) / 2
    return _blend(course, weights.tolist())


def _blend(course: Sequence[Evaluation], weights: Sequence[float]) -> Outcomes:
    """Weighted mean of several evaluations of a set, problem by problem."""
    shared = [problem for problem in course[0].outcomes if all(problem in one.outcomes for one in course)]
    return {
        problem: sum(weight * one.outcomes[problem] for one, weight in zip(course, weights, strict=True))
        for problem in shared
    }


def _entropy(comparison: Comparison, claim: Claim, _: str) -> Interval | str:
    """Difference of the mean entropy over the RL steps, or over the last fifth of them; it takes two seeds."""
    pairs = []
    for method in (claim.method, claim.rival):
        series = [run.series("policy/entropy", "rl") for run in comparison.finished(method)]
        if not all(series):
            return NOT_MEASURED
        if claim.measure is Measure.FINAL_ENTROPY:
            series = [values[-max(1, len(values) // FIFTH) :] for values in series]
        pairs.append([float(np.mean(values)) for values in series])
    return seeds_difference(*pairs) or ONE_SEED


def _trace_advantage_fall(comparison: Comparison, claim: Claim, _: str) -> Interval | str:
    """Mean advantage of the traces over the first fifth of the RL steps minus that over the last, over seeds.

    With one seed the interval is over the steps of the two fifths: each step draws other problems.
    """
    series = [run.series("guidance/trace_advantage", "rl") for run in comparison.finished(claim.method)]
    if min(map(len, series)) < 2 * FIFTH:
        return TOO_SHORT
    fifths = [(values[: len(values) // FIFTH], values[-(len(values) // FIFTH) :]) for values in series]
    falls = [float(np.mean(first) - np.mean(last)) for first, last in fifths]
    return (seeds_difference(falls) if len(falls) > 1 else seeds_difference(*fifths[0])) or TOO_SHORT


_MEASURES: dict[Measure, Callable[[Comparison, Claim, str], Interval | str]] = {
    Measure.ACCURACY: _accuracy,
    Measure.SPEED: _speed,
    Measure.ENTROPY: _entropy,
    Measure.FINAL_ENTROPY: _entropy,
    Measure.TRACE_ADVANTAGE_FALL: _trace_advantage_fall,
}


def _method_entry(comparison: Comparison, method: str) -> dict[str, Any]:
    runs = comparison.finished(method)
    return {
        "seeds": len(runs),
        "evaluations": _evaluations(comparison, method),
        "tokens": {key: _mean_total(runs, key) for key in ("trained", "generated")},
        "seconds": _mean_total(runs, "seconds"),
    }


def _evaluations(comparison: Comparison, method: str) -> dict[str, Any]:
    return {name: summarise(final) for name in comparison.sets if (final := comparison.final(method, name))}


def _mean_total(runs: Sequence[Run], key: str) -> float | None:
    """Mean over seeds of seconds or tokens a run."""
    totals = [total for run in runs if (total := run.total(key)) is not None]
    return sum(totals) / len(totals) if totals else None


def best_method(comparison: Comparison, methods: Sequence[str], name: str) -> str | None:
    """The method that beats every other one on a set by a paired interval above zero; None if there is none."""
    scores = {method: found[0] for method in methods if (found := comparison.accuracies([method], name))}
    if len(scores) < 2:
        return None
    first = max(scores, key=lambda method: float(scores[method].mean()))
    pairs = [comparison.accuracies([first, other], name) for other in scores if other != first]
    return first if all(pair is not None and paired_difference(*pair).low > 0 for pair in pairs) else None


def at_equal_tokens(comparison: Comparison) -> dict[str, Any]:
    """Accuracy at the largest number of processed tokens (trained + generated) that all finished runs reached.

    For sets watched during every run; between two evaluations each problem's accuracy is interpolated linearly.
    """
    runs = {method: seeds for method in comparison.methods if (seeds := comparison.finished(method))}
    reached = [max(e.processed for e in run.evaluations) for seeds in runs.values() for run in seeds if run.evaluations]
    budget = min(reached, default=0.0)
    evaluations: dict[str, dict[str, Any]] = {}
    for method, seeds in runs.items():
        for name in comparison.sets:
            rows = align([[_at_tokens(run.of_set(name), budget) for run in seeds]]) if budget > 0 else None
            if rows is not None:
                evaluations.setdefault(method, {})[name] = seeds_interval(rows[0]).to_json()
    return {"tokens": budget, "evaluations": evaluations}


def _at_tokens(course: Sequence[Evaluation], tokens: float) -> Outcomes:
    """Each problem's outcome at a number of processed tokens; empty if the set was not watched."""
    if len(course) < WATCHED:
        return {}
    reached = [evaluation.processed for evaluation in course]
    after = min(max(1, int(np.searchsorted(reached, tokens))), len(course) - 1)
    gap = reached[after] - reached[after - 1]
    weight = min(1.0, (tokens - reached[after - 1]) / gap) if gap > 0 else 1.0
    return _blend(course[after - 1 : after + 1], (1 - weight, weight))


def _notes(comparison: Comparison) -> list[str]:
    """What a reader must know before believing the numbers."""
    notes = []
    alone = [method for method in comparison.methods if len(comparison.finished(method)) == 1]
    if alone:
        notes.append(
            f"One finished seed of {', '.join(alone)}: these intervals cover the choice of problems, not the luck of a "
            "training run. Three seeds or more make a comparison."
        )
    bare = [run for run in comparison.runs if run.evaluations and not all(one.outcomes for one in run.evaluations)]
    if bare:
        notes.append(
            f"The samples of {len(bare)} of {len(comparison.runs)} runs are not on disk: the intervals of their "
            "accuracies rest on each run's mean alone, which makes them wider, and nothing is compared by problem."
        )
    for key, meaning in (("data_digest", "training data"), ("versions", "library versions")):
        seen = [run.environment[key] for run in comparison.runs if run.environment.get(key)]
        if any(other != seen[0] for other in seen):
            notes.append(f"Not all runs have the same {meaning}; the comparison is not fair.")
    if len({str(run.config.get("model")) for run in comparison.runs}) > 1:
        notes.append("Not all runs start from the same model; the comparison is not fair.")
    skipped = sum(sum(run.series("update/skipped")) for run in comparison.runs)
    if skipped:
        notes.append(f"{skipped:.0f} updates were skipped because loss or gradient was not finite.")
    return notes
