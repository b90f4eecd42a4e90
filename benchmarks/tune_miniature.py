"""Choose each method's learning rates on the miniature's validation set, by the same search for all.

    python benchmarks/tune_miniature.py --jobs 2 --output runs/tuning

Every point of the grids is tried with one seed. Those that 200 problems cannot tell from the best of their method
(0.02 of accuracy on miniature/validation at the end), and at least three, get three more seeds: a single lucky run must
not choose a rate at which others fail. Chosen is the highest mean accuracy at the end; of those that four times 200
problems cannot tell from it (0.01), the one with the highest mean over the course. It
stands under `methods:` of recipes/miniature.yaml. No run of this search sees an evaluation set or a seed of the
comparison. Resumable: finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from luffy.comparison.runner import Comparison, plan_comparison, run_comparison

RECIPE = Path(__file__).parents[1] / "recipes" / "miniature.yaml"
RATES = (2e-5, 5e-5, 1e-4, 2e-4, 4e-4)
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    # wide enough that the best point is not at an edge; more points for what concerns SFT: it has one more thing to
    # choose, and the strongest rival may not lack a setting
    "on_policy": {"optimizer.learning_rate": RATES},
    "luffy": {"optimizer.learning_rate": RATES},
    "mixed": {"optimizer.learning_rate": RATES},
    "rl_sft": {"optimizer.learning_rate": RATES},
    "sft": {"sft.learning_rate": (3e-5, 1e-4, 3e-4, 1e-3), "steps": (20, 60, 200)},
    "sft_rl": {"sft.learning_rate": (1e-5, 3e-5, 1e-4, 3e-4), "optimizer.learning_rate": (5e-5, 1e-4, 2e-4)},
}
SEEDS = (100, 101, 102, 103)  # the first for every point, all for the finalists of each method
FINALISTS = 3  # at least
INDISTINCT = 0.02  # with one seed; it falls with the square root of their number
Key = tuple[str, int]  # method, place in its grid
FIXED = (
    'evaluation.benchmarks=["miniature/validation"]',
    'evaluation.watch=["miniature/validation"]',
    "rollouts_every=0",
)


def settings(grid: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """All points of a grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def plan(method: str, point: dict[str, Any], seeds: list[int], output: Path) -> Comparison:
    """The runs of one point of a method's grid."""
    overrides = [*FIXED, *(f"{key}={value}" for key, value in point.items())]
    return plan_comparison(RECIPE, [method], seeds, output / label(method, point), overrides)


def label(method: str, point: dict[str, Any]) -> str:
    """The name of a point: its folder and its row."""
    return ",".join([method, *(f"{key}={value:g}" for key, value in point.items())])


def measure(folder: Path) -> dict[str, float]:
    """Validation accuracy of a run at its end, and its mean over the course."""
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    points = [json.loads(line)["avg@1"]["value"] for line in lines]
    return {"final": points[-1], "area": sum(points) / len(points)}


def run_all(plans: list[Comparison], jobs: int, output: Path) -> None:
    """Run everything that is not finished, side by side."""
    everything = Comparison(output, [job for one in plans for job in one.jobs])
    run_comparison(everything, parallel=jobs)


def search(methods: list[str], jobs: int, output: Path) -> dict[str, dict[str, Any]]:
    """Both rounds. Returns the rows of the table by label: accuracies by seed, whether it was chosen."""
    first = {(method, place): point for method in methods for place, point in enumerate(settings(GRIDS[method]))}
    plans = {key: plan(key[0], point, [SEEDS[0]], output) for key, point in first.items()}
    run_all(list(plans.values()), jobs, output)
    scores = {key: [measure(job.folder) for job in one.jobs] for key, one in plans.items()}
    finalists = {method: best([key for key in first if key[0] == method], scores, FINALISTS) for method in methods}
    again = {key: plan(key[0], first[key], list(SEEDS), output) for keys in finalists.values() for key in keys}
    run_all(list(again.values()), jobs, output)
    scores |= {key: [measure(job.folder) for job in one.jobs] for key, one in again.items()}
    chosen = {choose(keys, scores) for keys in finalists.values()}
    return {
        label(key[0], point): {
            "final": [one["final"] for one in scores[key]],
            "area": mean(scores[key], "area"),
            "chosen": key in chosen,
        }
        for key, point in first.items()
    }


def best(keys: list[Key], scores: dict[Key, list[dict[str, float]]], least: int) -> list[Key]:
    """The points that cannot be told from the best one, and the next best up to `least`."""
    order = sorted(keys, key=lambda key: mean(scores[key], "final"), reverse=True)
    highest = mean(scores[order[0]], "final")
    return [
        key for place, key in enumerate(order) if place < least or mean(scores[key], "final") > highest - INDISTINCT
    ]


def choose(keys: list[Key], scores: dict[Key, list[dict[str, float]]]) -> Key:
    """The fastest learner of those that cannot be told from the best one."""
    highest = max(mean(scores[key], "final") for key in keys)
    level = [key for key in keys if mean(scores[key], "final") > highest - INDISTINCT / len(scores[key]) ** 0.5]
    return max(level, key=lambda key: mean(scores[key], "area"))


def mean(runs: list[dict[str, float]], name: str) -> float:
    """Over the seeds of a point."""
    return sum(run[name] for run in runs) / len(runs)


def main() -> None:
    """Run the search, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(GRIDS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/tuning"))
    arguments = parser.parse_args()
    rows = search(arguments.methods.split(","), arguments.jobs, arguments.output)
    for name, row in rows.items():
        print(f"{name:62s} area {row['area']:.3f}  seeds {row['final']}{'  <- chosen' if row['chosen'] else ''}")
    file = arguments.output / "tuning.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
