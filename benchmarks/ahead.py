"""What generating one step ahead costs in learning and gives in time, on the miniature.

`python benchmarks/ahead.py`. LUFFY with `rollout.ahead` 0 and 1 and nothing else changed: truncated importance sampling
(cap 2) is on in both. Learning: greedy accuracy on miniature/hard during 100 steps, five seeds: median, lowest and
highest of them, and the difference of the means with its 95 % interval. Time: short runs in turn, the median step of
each. Runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measuring import ratio, report

from luffy import load_config, train
from luffy.evaluation.statistics import seeds_difference

SET, STEPS, SHOWN = "miniature/hard", 100, (40, 60, 80, 100)
TIMED_STEPS, SKIPPED, REPEATS = 20, 3, 5
ARMS = (0, 1)


def main() -> None:
    """Run what is missing, then time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path("runs/ahead"))
    parser.add_argument("--only-learn", action="store_true", help="no timing, no report")
    arguments = parser.parse_args()
    curves = {ahead: [_learn(ahead, seed, arguments.output) for seed in range(arguments.seeds)] for ahead in ARMS}
    if arguments.only_learn:
        return
    timed = [[_timed(ahead) for ahead in ARMS] for _ in range(REPEATS)]
    report("ahead", [_row(ahead, curves, timed) for ahead in ARMS])


def _learn(ahead: int, seed: int, output: Path) -> dict[int, float]:
    """Accuracy by step of one run."""
    folder = output / f"ahead-{ahead}" / f"seed-{seed}"
    _train(ahead, folder, STEPS, seed=seed, **{"evaluation.benchmarks": [SET], "evaluation.watch": [SET]})
    lines = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    return {line["step"]: line["avg@1"]["value"] for line in lines}


def _timed(ahead: int) -> dict[str, float]:
    """Seconds of the median step, and of the median wait for groups."""
    with tempfile.TemporaryDirectory() as folder:
        seen = _train(ahead, Path(folder) / "run", TIMED_STEPS, **{"evaluation.benchmarks": [], "evaluation.watch": []})
    return {
        name: statistics.median(metrics[name] for metrics in seen[SKIPPED:-1])
        for name in ("time/step", "time/generate")
    }


def _train(ahead: int, folder: Path, steps: int, **overrides: Any) -> list[dict[str, Any]]:
    seen: list[dict[str, Any]] = []
    settings = {"objective.importance_cap": 2.0, "rollout.ahead": ahead, "steps": steps, "output": str(folder)}
    config = load_config("recipes/miniature.yaml", settings | overrides)
    train(config, on_step=lambda _step, _steps, metrics: seen.append(metrics))
    return seen


def _row(ahead: int, curves: dict[int, list[dict[int, float]]], timed: list[list[dict[str, float]]]) -> dict[str, Any]:
    row: dict[str, Any] = {"ahead": ahead, "seeds": len(curves[ahead])}
    for step in SHOWN:
        values = [curve[step] for curve in curves[ahead]]
        row[f"accuracy {step}"] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
        difference = seeds_difference(values, [curve[step] for curve in curves[0]])
        if difference:
            row[f"minus ahead=0, {step}"] = f"{difference.value:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"
    row["step, s"] = statistics.median(one[ahead]["time/step"] for one in timed)
    row["waiting for groups, s"] = statistics.median(one[ahead]["time/generate"] for one in timed)
    row["step / step of ahead=0"] = ratio(
        [one[ahead]["time/step"] for one in timed], [one[0]["time/step"] for one in timed]
    )
    return row


if __name__ == "__main__":
    main()
