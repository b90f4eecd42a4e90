"""LoRA against full training on the miniature: LUFFY, each at its own learning rate; the same problems, steps, seeds.

    python benchmarks/adapters.py --output runs/adapters

The rate of LoRA is chosen as that of full training was (`tune_miniature.py`): on miniature/validation, with seeds that
the comparison does not use; full training keeps the rate of recipes/miniature.yaml. Then both are run over the seeds.
Writes OUTPUT/adapters.json and, with all runs finished, docs/results/adapters.json and the table of docs/adapters.md.
Resumable: finished runs are not repeated, an interrupted one goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measuring import replace
from tune_miniature import FIXED, RECIPE, measure

from luffy.comparison.collect import Comparison as Runs
from luffy.comparison.collect import read_run
from luffy.comparison.runner import Comparison, plan_comparison, run_comparison
from luffy.evaluation.statistics import paired_difference, seeds_interval

ROOT = Path(__file__).parents[1]
RATES = (3e-4, 1e-3, 3e-3)
TUNING_SEEDS = (100, 101)
SEEDS = (0, 1, 2, 3, 4)
SETS = ("hard", "other_heading", "longer", "short", "worked", "unrelated")
COMMON = ("evaluation.watch=[]", "rollouts_every=0", "keep_checkpoints=1")


def search(rank: int, output: Path, parallel: int) -> dict[float, list[float]]:
    """Accuracy on the validation set at the end of a run, for each rate and seed."""
    plans = {
        rate: plan_comparison(
            RECIPE,
            ["luffy"],
            TUNING_SEEDS,
            output / "tuning" / f"rank={rank},rate={rate:g}",
            [*FIXED, *COMMON, *adapter(rank, rate)],
        )
        for rate in RATES
    }
    run_comparison(Comparison(output, [job for one in plans.values() for job in one.jobs]), parallel=parallel)
    return {rate: [measure(job.folder)["final"] for job in one.jobs] for rate, one in plans.items()}


def adapter(rank: int, rate: float) -> list[str]:
    """Overrides for LoRA."""
    return [f"adapter.rank={rank}", f"optimizer.learning_rate={rate}"]


def compare(rank: int, rate: float, seeds: Sequence[int], output: Path, parallel: int) -> Runs:
    """Both ways over the seeds."""
    plans = {
        name: plan_comparison(RECIPE, ["luffy"], seeds, output / name, [*COMMON, *overrides])
        for name, overrides in {"full": [], f"rank-{rank}": adapter(rank, rate)}.items()
    }
    # seed by seed, so that an unfinished comparison has whole seeds of both
    jobs = [job for pair in zip(*(one.jobs for one in plans.values()), strict=True) for job in pair]
    run_comparison(Comparison(output, jobs), parallel=parallel)
    return Runs({name: tuple(read_run(job.folder) for job in one.jobs) for name, one in plans.items()})


def describe(runs: Runs, rank: int) -> dict[str, Any]:
    """Accuracies of both ways on every set, and the difference, LoRA minus full."""
    sets = {}
    for name in (f"miniature/{one}" for one in SETS):
        accuracies = runs.accuracies(["full", f"rank-{rank}"], name)
        assert accuracies is not None
        full, lora = accuracies
        sets[name] = {
            "full": seeds_interval(full).to_json(),
            "lora": seeds_interval(lora).to_json(),
            "difference": paired_difference(lora, full).to_json(),
        }
    return {"rank": rank, "seeds": len(runs.finished("full")), "sets": sets}


def table(found: dict[str, Any]) -> str:
    """The rows of docs/adapters.md."""
    lines = [
        f"| set | full | LoRA, rank {found['rank']} | LoRA - full |",
        "|---|---|---|---|",
        *(
            f"| {name.removeprefix('miniature/')} | {percent(row['full'])} | {percent(row['lora'])} "
            f"| {percent(row['difference'], signed=True)} |"
            for name, row in found["sets"].items()
        ),
        "",
        f"Accuracy in % with 95 % intervals over problems and {found['seeds']} seeds. Rates tried for LoRA, with the",
        "accuracy on the validation set: "
        + "; ".join(f"{rate}: {', '.join(f'{100 * one:.1f}' for one in ends)}" for rate, ends in found["rates"].items())
        + f". Chosen: {found['rate']:g}.",
    ]
    return "\n".join(lines)


def percent(interval: dict[str, Any], *, signed: bool = False) -> str:
    """`97.5 [96.0, 98.7]`."""
    sign = "+" if signed else ""
    return (
        f"{100 * interval['value']:{sign}.1f} [{100 * interval['low']:{sign}.1f}, {100 * interval['high']:{sign}.1f}]"
    )


def main() -> None:
    """Search, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/adapters"))
    arguments = parser.parse_args()
    ends = search(arguments.rank, arguments.output, arguments.jobs)
    rate = max(ends, key=lambda one: (sum(ends[one]), -one))
    print("rates:", {f"{one:g}": values for one, values in ends.items()}, "chosen:", rate, flush=True)
    runs = compare(arguments.rank, rate, arguments.seeds, arguments.output, arguments.jobs)
    found = describe(runs, arguments.rank) | {
        "rate": rate,
        "rates": {f"{one:g}": values for one, values in ends.items()},
    }
    file = arguments.output / "adapters.json"
    file.write_text(json.dumps(found, indent=2) + "\n")
    shutil.copy(file, ROOT / "docs" / "results" / "adapters.json")
    replace(ROOT / "docs" / "adapters.md", "adapters", table(found))
    print(table(found))


if __name__ == "__main__":
    main()
