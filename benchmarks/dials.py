"""The map over the miniature's dials: one thing changed at a time, each method at the rates of the recipe.

    python benchmarks/dials.py --jobs 2 --output runs/dials

Writes OUTPUT/dials.json: for each setting and method the accuracy on every set, with intervals over problems and seeds.
Resumable: finished runs are not repeated.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luffy.comparison.runner import Comparison, plan_comparison, run_comparison
from luffy.comparison.verdicts import build_comparison

RECIPE = Path(__file__).parents[1] / "recipes" / "miniature.yaml"


@dataclass(frozen=True, slots=True)
class Dial:
    """One setting of the map."""

    summary: str
    overrides: tuple[str, ...]
    methods: tuple[str, ...] = ("luffy", "sft", "sft_rl")


DIALS = {
    "easy": Dial(
        "problems of 2 to 4 operations",
        ("data.miniature.shortest=2", "data.miniature.longest=4"),
        ("on_policy", "luffy"),
    ),
    "eager": Dial(
        "the base that goes on six times as often, with fewer slips",
        ("model=miniature-eager",),
        ("on_policy", "luffy", "sft_rl"),
    ),
    "easy eager": Dial(
        "that base on problems of 2 to 4 operations",
        ("model=miniature-eager", "data.miniature.shortest=2", "data.miniature.longest=4"),
        ("on_policy", "luffy"),
    ),
    "own style": Dial("traces in the base's own style", ("data.miniature.style=base",)),
    "few traces": Dial("32 of the 256 problems have a trace", ("data.miniature.traced=32",)),
    "wrong traces": Dial(
        "half of the traces end wrongly and are kept", ("data.miniature.wrong=0.5", "data.on_bad_trace=keep")
    ),
    "long": Dial("problems of 9 to 10 operations", ("data.miniature.shortest=9", "data.miniature.longest=10")),
}
FIXED = ("evaluation.watch=[]", "rollouts_every=0", "keep_checkpoints=1")


def main() -> None:
    """Run the map and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dials", nargs="+", default=list(DIALS), choices=list(DIALS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("runs/dials"))
    arguments = parser.parse_args()
    file = arguments.output / "dials.json"
    for name in arguments.dials:
        dial, folder = DIALS[name], arguments.output / name.replace(" ", "-")
        plan = plan_comparison(RECIPE, dial.methods, arguments.seeds, folder, [*FIXED, *dial.overrides])
        run_comparison(Comparison(folder, plan.jobs), parallel=arguments.jobs)
        known = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(known | {name: describe(dial, build_comparison(folder))}, indent=2) + "\n")
        print(f"{name}: {dial.summary}", flush=True)


def describe(dial: Dial, comparison: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one setting."""
    methods = {name: entry["evaluations"] for name, entry in comparison["methods"].items()}
    seeds = {name: entry["seeds"] for name, entry in comparison["methods"].items()}
    return {"summary": dial.summary, "overrides": dial.overrides, "seeds": seeds, "methods": methods}


if __name__ == "__main__":
    main()
