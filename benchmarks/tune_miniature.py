"""Choose each method's learning rates on the miniature's validation set, with the same small grid for all.

    python benchmarks/tune_miniature.py --jobs 2 --output runs/tuning

Every method gets the same number of settings and seeds; none ever sees an evaluation set. What is best (mean accuracy
on miniature/validation at the end; ties: the area under its curve) belongs under `methods:` of recipes/miniature.yaml.
Resumable: finished runs are not repeated.
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
RATES = (5e-5, 1e-4, 2e-4)
GRIDS: dict[str, dict[str, tuple[Any, ...]]] = {
    # three settings each, more for what concerns SFT: the strongest rivals may not lack a setting, and one that was
    # best at the edge of a first grid got a wider one
    "on_policy": {"optimizer.learning_rate": RATES},
    "luffy": {"optimizer.learning_rate": RATES},
    "mixed": {"optimizer.learning_rate": RATES},
    "rl_sft": {"optimizer.learning_rate": RATES},
    "sft": {"sft.learning_rate": (3e-5, 1e-4, 3e-4, 1e-3), "steps": (40, 120, 400)},
    "sft_rl": {"sft.learning_rate": (1e-5, 3e-5, 1e-4), "optimizer.learning_rate": (5e-5, 1e-4)},
}
FIXED = (
    'evaluation.benchmarks=["miniature/validation"]',
    'evaluation.watch=["miniature/validation"]',
    "rollouts_every=0",
)


def settings(grid: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """All points of a grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def plan(output: Path, methods: list[str], seeds: list[int], extra: list[str]) -> dict[str, Comparison]:
    """One comparison of a single method per grid point, by its label."""
    comparisons = {}
    for method in methods:
        for point in settings(GRIDS[method]):
            label = ",".join([method, *(f"{key}={value:g}" for key, value in point.items()), *extra])
            overrides = [*FIXED, *extra, *(f"{key}={value}" for key, value in point.items())]
            comparisons[label] = plan_comparison(RECIPE, [method], seeds, output / label, overrides)
    return comparisons


def curve(folder: Path) -> list[float]:
    """Validation accuracy at each evaluation of a run."""
    lines = (folder / "evaluations.jsonl").read_text().splitlines()
    return [json.loads(line)["avg@1"]["value"] for line in lines]


def main() -> None:
    """Run the grid, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", default=",".join(GRIDS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[100], help="not those of the comparison")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/tuning"))
    parser.add_argument("overrides", nargs="*", help="key=value for every run, such as sft.steps=40")
    arguments = parser.parse_args()
    plans = plan(arguments.output, arguments.methods.split(","), arguments.seeds, arguments.overrides)
    everything = Comparison(arguments.output, [job for one in plans.values() for job in one.jobs])
    run_comparison(everything, parallel=arguments.jobs)
    rows = {}
    for label, one in plans.items():
        curves = [curve(job.folder) for job in one.jobs]
        final = [points[-1] for points in curves]
        area = [sum(points) / len(points) for points in curves]
        rows[label] = {"final": final, "mean": sum(final) / len(final), "area": sum(area) / len(area)}
        shown = "  ".join(f"{value:.3f}" for value in final)
        print(f"{label:60s} mean {rows[label]['mean']:.3f}  area {rows[label]['area']:.3f}  seeds {shown}", flush=True)
    file = arguments.output / "tuning.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
