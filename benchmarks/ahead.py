"""What generating one step ahead costs in learning and gives in time, on the miniature.

`python benchmarks/ahead.py`. `rollout.ahead` 0 and 1 and nothing else changed: truncated importance sampling (cap 2) is
on in both. Learning as in `learning.py`. Time: short runs in turn, the median step of each.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from learning import learning_rows, train_miniature
from measuring import ratio, report

ARMS = {f"ahead-{ahead}": {"rollout.ahead": ahead, "objective.importance_cap": 2.0} for ahead in (0, 1)}
TIMED_STEPS, SKIPPED = 20, 3
SHOWN = (40, 60, 80, 100)


def main() -> None:
    """Run what is missing, then time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="0: time alone")
    parser.add_argument("--output", type=Path, default=Path("runs/ahead"))
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each; 0: no timing")
    arguments = parser.parse_args()
    if arguments.seeds:
        report("ahead", learning_rows(ARMS, arguments.seeds, arguments.output, SHOWN))
    if arguments.repeats:
        report("ahead-time", _time_rows(arguments.repeats))


def _time_rows(repeats: int) -> list[dict[str, Any]]:
    timed = [{name: _timed(name) for name in ARMS} for _ in range(repeats)]
    without = next(iter(ARMS))
    return [
        {
            "": name,
            "step, s": statistics.median(one[name]["time/step"] for one in timed),
            "waiting for groups, s": statistics.median(one[name]["time/generate"] for one in timed),
            "step / step without": ratio(
                [one[name]["time/step"] for one in timed], [one[without]["time/step"] for one in timed]
            ),
        }
        for name in ARMS
    ]


def _timed(name: str) -> dict[str, float]:
    """Seconds of the median step, and of the median wait for groups."""
    with tempfile.TemporaryDirectory() as folder:
        keys = {"steps": TIMED_STEPS, "evaluation.benchmarks": [], "evaluation.watch": []}
        seen = train_miniature(Path(folder) / "run", keys | ARMS[name])
    return {
        name: statistics.median(metrics[name] for metrics in seen[SKIPPED:-1])
        for name in ("time/step", "time/generate")
    }


if __name__ == "__main__":
    main()
