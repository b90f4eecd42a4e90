"""Run folders and comparisons as typed records: everything that a verdict, a table or a curve is computed from.

Nothing here trains, samples or decides; it reads what a run left on disk, also when the run is still going on or was
stopped. A line that is being written while it is read (the last one of a file) is left out; any other broken line is
an error that names file and line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import yaml

from luffy.errors import RunError
from luffy.evaluation.statistics import RESAMPLES, Array, Interval, means_interval, seeds_difference, seeds_interval
from luffy.files import parse_object, read_lines, taken_as_written

BASE = "base"  # the untrained model, as if it were a method with one seed
FINISHED = "finished"  # the status of a run that did all its steps


COUNTS = frozenset({"completion/length", "verifier/failures"})  # metrics of an evaluation that are not shares

Outcomes = Mapping[str, float]  # problem id -> share of right samples


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One set, measured after one step."""

    step: int  # 0: before training
    set: str  # such as miniature/hard
    processed: float  # tokens trained and generated until then
    metrics: Mapping[str, Any]  # as in evaluations.jsonl: intervals as mappings, the rest as numbers
    outcomes: Outcomes  # of each problem; empty where the samples are not on disk

    @property
    def accuracy_name(self) -> str:
        """`avg@k`, as the run called it."""
        return next((name for name in self.metrics if name.startswith("avg@")), "avg@1")


@dataclass(frozen=True, slots=True)
class Run:
    """What one run left behind, finished or not."""

    folder: Path
    method: str
    seed: int
    status: str  # `finished`, or what else summary.json says; `unknown` without one
    config: Mapping[str, Any]  # nested, empty where config.yaml is missing
    environment: Mapping[str, Any]  # versions, data_digest, hardware
    summary: Mapping[str, Any]
    metrics: tuple[Mapping[str, Any], ...]  # one mapping a step, by step
    evaluations: tuple[Evaluation, ...]  # by step

    @property
    def finished(self) -> bool:
        """Whether the run did all its steps."""
        return self.status == FINISHED

    @property
    def steps(self) -> int:
        """Steps done so far."""
        return int(self.metrics[-1]["step"]) if self.metrics else int(self.summary.get("steps") or 0)

    @property
    def sets(self) -> list[str]:
        """Names of the sets it was evaluated on, in the order of the first evaluation."""
        return list(dict.fromkeys(evaluation.set for evaluation in self.evaluations))

    def of_set(self, name: str) -> list[Evaluation]:
        """All evaluations on a set, by step."""
        return [evaluation for evaluation in self.evaluations if evaluation.set == name]

    def base(self, name: str) -> Evaluation | None:
        """The evaluation of the untrained model on a set."""
        return next((evaluation for evaluation in self.of_set(name) if evaluation.step == 0), None)

    def last(self, name: str) -> Evaluation | None:
        """The latest evaluation on a set that is not the base's: of the final model, where the run is finished."""
        return next((evaluation for evaluation in reversed(self.of_set(name)) if evaluation.step > 0), None)

    def series(self, metric: str, phase: str | None = None) -> list[float]:
        """The finite values of a metric over the steps (of one phase) that have it."""
        return [
            float(line[metric])
            for line in self.metrics
            if is_number(line.get(metric)) and phase in (None, line.get("phase", phase))
        ]

    def total(self, key: str) -> float | None:
        """`seconds`, or `trained` or `generated` tokens: from the summary, or summed up where that lags behind."""
        tokens = self.summary.get("tokens") or {}
        given = self.summary.get(key) if key == "seconds" else tokens.get(key)
        if is_number(given) and int(self.summary.get("steps") or 0) >= self.steps:
            return float(given)
        values = self.series("time/step") if key == "seconds" else self.series(f"tokens/{key}")[-1:]
        return sum(values) if values else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs by method, and what is not there but should be."""

    methods: Mapping[str, tuple[Run, ...]]  # at least one run each, by seed
    incomplete: tuple[str, ...] = field(default=())  # sentences: runs that are missing or unfinished

    @property
    def runs(self) -> list[Run]:
        """All runs."""
        return [run for runs in self.methods.values() for run in runs]

    @property
    def sets(self) -> list[str]:
        """Names of all sets, in the order of the runs' own evaluations."""
        return list(dict.fromkeys(name for run in self.runs for name in run.sets))

    def finished(self, method: str) -> list[Run]:
        """The runs of a method that did all their steps; these alone count in tables and verdicts."""
        return [run for run in self.methods.get(method, ()) if run.finished]

    def final(self, method: str, name: str) -> list[Evaluation]:
        """The final evaluations of a method on a set, one a seed; for `base`, the one of the untrained model.

        Without any finished run, the base is taken from an unfinished one: nothing was trained for it.
        """
        if method == BASE:
            found = [run.base(name) for run in sorted(self.runs, key=lambda run: not run.finished)]
            return [evaluation for evaluation in found if evaluation is not None][:1]
        return [evaluation for run in self.finished(method) if (evaluation := run.last(name)) is not None]

    def accuracies(self, methods: Sequence[str], name: str) -> list[Array] | None:
        """Final accuracy of each of the methods on one set: [seeds, problems], the problems the same in each.

        None where a method was not measured there, or they share no problem.
        """
        return align([[evaluation.outcomes for evaluation in self.final(method, name)] for method in methods])


def align(rows: Sequence[Sequence[Outcomes]]) -> list[Array] | None:
    """Accuracies [seeds, problems] of each method on the problems that all of them were measured on.

    rows: for each method, for each seed, the outcomes. None where there is nothing to compare.
    """
    every = [outcomes for seeds in rows for outcomes in seeds]
    shared = [problem for problem in every[0] if all(problem in outcomes for outcomes in every)] if every else []
    if not shared or not all(rows):
        return None
    return [np.array([[outcomes[problem] for problem in shared] for outcomes in seeds]) for seeds in rows]


def summarise(evaluations: Sequence[Evaluation]) -> dict[str, dict[str, float | int | None]]:
    """Every metric of a method on one set, over its seeds, as `{METRIC: {"value", "low", "high", "n"}}`.

    evaluations: one a seed. Shares of problems are intervals over seeds and problems, other metrics over seeds; with
    one seed they keep the interval that the run gave them, or have none (null). No end lies where no value can.
    """
    table: dict[str, dict[str, float | int | None]] = {}
    measured = [name for evaluation in evaluations for name in evaluation.metrics]
    for name in dict.fromkeys([evaluations[0].accuracy_name, *measured]):
        interval = accuracy_interval(evaluations) if name.startswith("avg@") else None
        if (found := interval.to_json() if interval else _over_seeds(name, evaluations)) is not None:
            table[name] = dict(found)
    return table


def accuracy_interval(evaluations: Sequence[Evaluation], *, resamples: int = RESAMPLES) -> Interval | None:
    """Accuracy of a method on one set, over seeds and problems, from the samples or, without them, from what is kept.

    evaluations: one a seed. None where no accuracy is kept.
    """
    rows = align([[evaluation.outcomes for evaluation in evaluations]])
    if rows is not None:
        return seeds_interval(rows[0], resamples=resamples)
    return _kept_interval([evaluation.metrics.get(evaluation.accuracy_name) for evaluation in evaluations])


def _kept_interval(given: Sequence[Any]) -> Interval | None:
    """Interval over seeds and problems of what the runs give as one over problems; of one seed, as it is given."""
    kept = [one for one in given if isinstance(one, Mapping) and all(is_number(one.get(key)) for key in ("value", "n"))]
    if not kept or any(one["n"] < 1 or not 0 <= one["value"] <= 1 for one in kept):
        return None
    problems = int(min(one["n"] for one in kept))
    if len(kept) == 1 and is_number(kept[0].get("low")) and is_number(kept[0].get("high")):
        return Interval(kept[0]["value"], kept[0]["low"], kept[0]["high"], problems)
    return means_interval([float(one["value"]) for one in kept], problems)


def _over_seeds(name: str, evaluations: Sequence[Evaluation]) -> Mapping[str, float | int | None] | None:
    """A metric over the seeds, each end where a value of this metric can lie."""
    given = [evaluation.metrics[name] for evaluation in evaluations if name in evaluation.metrics]
    if (kept := _kept_interval(given)) is not None:
        return kept.to_json()
    values = [item.get("value") if isinstance(item, Mapping) else item for item in given]
    numbers = [float(value) for value in values if is_number(value)]
    if not numbers:
        return None
    interval: Interval | None = seeds_difference(numbers)
    if interval is None:
        return {"value": numbers[0], "low": None, "high": None, "n": len(numbers)}
    top = math.inf if name in COUNTS else 1.0
    return interval.to_json() | {"low": max(0.0, interval.low), "high": min(top, interval.high)}


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value read from a file is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and bool(np.isfinite(value))


def is_run(folder: Path) -> bool:
    """Whether a folder looks like that of a run."""
    return any((folder / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json"))


def read_comparison(folder: Path) -> Comparison:
    """Read COMPARISON/METHOD/seed-K.

    Raises RunError where there is no run at all, or a file is broken.
    """
    methods: dict[str, tuple[Run, ...]] = {}
    incomplete = []
    seeds = sorted({_seed(path) for path in folder.glob("*/seed-*") if path.is_dir()})
    for method in sorted({path.parent.name for path in folder.glob("*/seed-*") if path.is_dir()}):
        runs = [
            read_run(path, method=method, seed=seed)
            for seed in seeds
            if is_run(path := folder / method / f"seed-{seed}")
        ]
        present = {run.seed for run in runs}
        incomplete += [f"{method}, seed {seed}: there is no run." for seed in seeds if seed not in present]
        if runs:
            methods[method] = tuple(runs)
    if not methods:
        raise RunError(f"{folder}: no run found; a comparison holds METHOD/seed-K folders.")
    return Comparison(methods, (*incomplete, *_unfinished(methods)))


def group_runs(runs: Iterable[Run]) -> Comparison:
    """Single runs as a comparison: by method where method and seed tell them apart, otherwise by folder name."""
    runs = list(runs)
    pairs = [(run.method, run.seed) for run in runs]
    if len(set(pairs)) == len(pairs):
        labels = [run.method for run in runs]
    else:
        names = [run.folder.resolve().name for run in runs]
        labels = names if len(set(names)) == len(names) else [str(run.folder) for run in runs]
    methods: dict[str, tuple[Run, ...]] = {}
    for label, run in zip(labels, runs, strict=True):
        methods[label] = (*methods.get(label, ()), run)
    return Comparison(methods, _unfinished(methods))


def read_run(folder: Path, *, method: str | None = None, seed: int | None = None) -> Run:
    """Read a run folder; method and seed override what its files say. Raises RunError naming the broken file."""
    if not is_run(folder):
        raise RunError(f"{folder}: not a run folder; it has no config.yaml, metrics.jsonl or summary.json.")
    document = _read_yaml(folder / "config.yaml")
    config = document.get("config") or {}
    summary = _read_json(folder / "summary.json")
    lines = {int(line["step"]): line for line in read_lines(folder / "metrics.jsonl") if is_number(line.get("step"))}
    return Run(
        folder=folder,
        method=str(method or summary.get("method") or config.get("method") or folder.resolve().name),
        seed=int(seed if seed is not None else summary.get("seed", config.get("seed", 0)) or 0),
        status=str(summary.get("status", "unknown")),
        config=config,
        environment={key: value for key, value in document.items() if key != "config"},
        summary=summary,
        metrics=tuple(lines[step] for step in sorted(lines)),  # of a step recorded twice, the later line counts
        evaluations=tuple(_read_evaluations(folder)),
    )


def _read_evaluations(folder: Path) -> list[Evaluation]:
    """The evaluations of a run, by step, with the outcome of each problem where the samples are on disk."""
    file = folder / "evaluations.jsonl"
    with taken_as_written(file):
        lines = {(int(line["step"]), str(line["set"])): line for line in read_lines(file)}
    not_metrics = {"step", "set", "tokens/trained", "tokens/generated"}
    return [
        Evaluation(
            step=step,
            set=name,
            processed=float(line.get("tokens/trained") or 0) + float(line.get("tokens/generated") or 0),
            metrics={key: value for key, value in line.items() if key not in not_metrics},
            outcomes=_read_outcomes(folder / "evaluations" / f"step-{step:06d}" / f"{name.replace('/', '-')}.jsonl"),
        )
        for (step, name), line in sorted(lines.items(), key=lambda item: item[0][0])
    ]


def _read_outcomes(path: Path) -> Outcomes:
    with taken_as_written(path):
        return {
            str(line["id"]): sum(bool(sample["correct"]) for sample in samples) / len(samples)
            for line in read_lines(path)
            if (samples := line.get("samples"))
        }


def _read_json(path: Path) -> dict[str, Any]:
    with taken_as_written(path):
        return parse_object(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or a date that there is not
        raise RunError(f"{path}: not valid YAML ({error}).") from None
    if not isinstance(document, dict):
        raise RunError(f"{path}: expected a mapping, got {type(document).__name__}.")
    return document


def _seed(path: Path) -> int:
    number = path.name.removeprefix("seed-")
    if not number.isdecimal():
        raise RunError(f"{path}: expected a folder name such as seed-0.")
    return int(number)


def _unfinished(methods: Mapping[str, Sequence[Run]]) -> tuple[str, ...]:
    return tuple(
        f"{method}, seed {run.seed}: {run.status} after {run.steps} steps; not counted."
        for method, runs in methods.items()
        for run in runs
        if not run.finished
    )
