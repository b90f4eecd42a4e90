"""What an option costs in learning: LUFFY on the miniature with it and without, everything else the same.

Greedy accuracy on miniature/hard, every 20 steps: median, lowest and highest of the seeds, and the difference of the
means with its 95 % interval; last, the same of a run's mean over these looks, which is how fast it learned. Runs that
are there already are not repeated.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luffy import load_config, train
from luffy.evaluation.statistics import seeds_difference

SET = "miniature/hard"

Arms = Mapping[str, Mapping[str, Any]]  # by name the keys of the configuration that it replaces; the first is without
Curve = Mapping[int | str, float]  # accuracy by step, and their mean as "mean"


def learning_rows(arms: Arms, seeds: int, output: Path, shown: Sequence[int]) -> list[dict[str, Any]]:
    """A row an arm; what is missing is run first, into OUTPUT/ARM/seed-K. The last of the steps shown ends a run."""
    curves: dict[str, list[Curve]] = {name: [] for name in arms}
    for seed in range(seeds):  # seed by seed, so that a few of each are there early
        for name, keys in arms.items():
            folder = output / name / f"seed-{seed}"
            curves[name].append(accuracy_by_step(folder, {"seed": seed, "steps": shown[-1]} | dict(keys)))
    without = next(iter(curves))
    return [_row(name, curves[name], curves[without], shown, first=name == without) for name in arms]


def accuracy_by_step(folder: Path, keys: Mapping[str, Any]) -> Curve:
    """Accuracy by step of one run, and its mean."""
    train_miniature(folder, {"evaluation.benchmarks": [SET], "evaluation.watch": [SET]} | dict(keys))
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    curve = {line["step"]: line["avg@1"]["value"] for line in lines}
    return curve | {"mean": statistics.mean(curve.values())}


def train_miniature(folder: Path, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train by the miniature's recipe with these keys replaced. Returns the metrics of each step that was run."""
    seen: list[dict[str, Any]] = []
    config = load_config("recipes/miniature.yaml", {"output": str(folder)} | dict(keys))
    train(config, on_step=lambda _step, _steps, metrics: seen.append(metrics))
    return seen


def _row(
    name: str, curves: Sequence[Curve], without: Sequence[Curve], shown: Sequence[int], *, first: bool
) -> dict[str, Any]:
    row: dict[str, Any] = {"": name, "seeds": len(curves)}
    places: tuple[int | str, ...] = (*shown, "mean")
    for place in places:
        values = [curve[place] for curve in curves]
        row[f"accuracy {place}"] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        difference = None if first else seeds_difference(values, [curve[place] for curve in without])
        row[f"difference {place}"] = (
            f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]" if difference else "-"
        )
    return row
