"""What an option costs in learning: LUFFY on the miniature with it and without, everything else the same.

Greedy accuracy on miniature/hard during 100 steps: median, lowest and highest of the seeds, and the difference of the
means with its 95 % interval. Runs that are there already are not repeated.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luffy import load_config, train
from luffy.evaluation.statistics import seeds_difference

SET, STEPS, SHOWN = "miniature/hard", 100, (40, 60, 80, 100)

Arms = Mapping[str, Mapping[str, Any]]  # by name the keys of the configuration that it replaces; the first is without


def learning_rows(arms: Arms, seeds: int, output: Path) -> list[dict[str, Any]]:
    """A row an arm; what is missing is run first, into OUTPUT/ARM/seed-K."""
    curves = {
        name: [accuracy_by_step(output / name / f"seed-{seed}", seed, keys) for seed in range(seeds)]
        for name, keys in arms.items()
    }
    without = next(iter(curves))
    return [_row(name, curves[name], curves[without], first=name == without) for name in arms]


def accuracy_by_step(folder: Path, seed: int, keys: Mapping[str, Any]) -> dict[int, float]:
    """Accuracy by step of one run."""
    train_miniature(
        folder, {"seed": seed, "steps": STEPS, "evaluation.benchmarks": [SET], "evaluation.watch": [SET]} | dict(keys)
    )
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    return {line["step"]: line["avg@1"]["value"] for line in lines}


def train_miniature(folder: Path, keys: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Train by the miniature's recipe with these keys replaced. Returns the metrics of each step that was run."""
    seen: list[dict[str, Any]] = []
    config = load_config("recipes/miniature.yaml", {"output": str(folder)} | dict(keys))
    train(config, on_step=lambda _step, _steps, metrics: seen.append(metrics))
    return seen


def _row(name: str, curves: list[dict[int, float]], without: list[dict[int, float]], *, first: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"": name, "seeds": len(curves)}
    for step in SHOWN:
        values = [curve[step] for curve in curves]
        row[f"accuracy {step}"] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        difference = None if first else seeds_difference(values, [curve[step] for curve in without])
        row[f"difference {step}"] = (
            f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]" if difference else "-"
        )
    return row
