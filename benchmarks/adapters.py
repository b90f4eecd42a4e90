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
from pathlib import Path
from typing import Any

from measuring import ROOT, replace
from tune_miniature import FIXED, measure
from variants import COMMON, RECIPE, SEEDS, compare, describe, table

from luffy.comparison.runner import Comparison, plan_comparison, run_comparison

RATES = (3e-4, 1e-3, 3e-3)
TUNING_SEEDS = (100, 101)


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


def rows(found: dict[str, Any]) -> str:
    """What docs/adapters.md says."""
    titles = {"full": "full", "lora": f"LoRA, rank {found['rank']}", "difference": "LoRA - full"}
    tried = "; ".join(
        f"{rate}: {', '.join(f'{100 * one:.1f}' for one in ends)}" for rate, ends in found["rates"].items()
    )
    return "\n".join(
        [
            *table(found, titles),
            "",
            f"Accuracy in % with 95 % intervals over problems and {found['seeds']} seeds. Rates tried for LoRA,",
            f"with the accuracy on the validation set: {tried}. Chosen: {found['rate']:g}.",
        ]
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
    lora = f"rank-{arguments.rank}"
    variants = {"full": [], lora: adapter(arguments.rank, rate)}
    runs = compare(variants, arguments.seeds, arguments.output, arguments.jobs)
    found = describe(runs, ("full", "full"), ("lora", lora)) | {
        "rank": arguments.rank,
        "rate": rate,
        "rates": {f"{one:g}": values for one, values in ends.items()},
    }
    file = arguments.output / "adapters.json"
    file.write_text(json.dumps(found, indent=2) + "\n")
    shutil.copy(file, ROOT / "docs" / "results" / "adapters.json")
    replace(ROOT / "docs" / "adapters.md", "adapters", rows(found))
    print(rows(found))


if __name__ == "__main__":
    main()
