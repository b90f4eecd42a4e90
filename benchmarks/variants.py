"""Two ways of training the miniature with LUFFY over the same seeds, all else being equal: what they end with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from measuring import ROOT

from luffy.comparison.collect import Comparison as Runs
from luffy.comparison.collect import read_run
from luffy.comparison.runner import Comparison, plan_comparison, run_comparison
from luffy.evaluation.statistics import paired_difference, seeds_interval

RECIPE = ROOT / "recipes" / "miniature.yaml"
SEEDS = (0, 1, 2, 3, 4)
SETS = ("hard", "other_heading", "longer", "short", "worked", "unrelated")
COMMON = ("evaluation.watch=[]", "rollouts_every=0", "keep_checkpoints=1")


def compare(variants: Mapping[str, Sequence[str]], seeds: Sequence[int], output: Path, parallel: int) -> Runs:
    """Both over the seeds. variants: overrides by name. Finished runs are not repeated, others go on."""
    plans = {
        name: plan_comparison(RECIPE, ["luffy"], seeds, output / name, [*COMMON, *overrides])
        for name, overrides in variants.items()
    }
    # seed by seed, so that an unfinished comparison has whole seeds of both
    jobs = [job for pair in zip(*(one.jobs for one in plans.values()), strict=True) for job in pair]
    run_comparison(Comparison(output, jobs), parallel=parallel)
    return Runs({name: tuple(read_run(job.folder) for job in one.jobs) for name, one in plans.items()})


def describe(runs: Runs, base: tuple[str, str], other: tuple[str, str]) -> dict[str, Any]:
    """Accuracies of both on every set, and the difference, other minus base. Each: its name here, and its variant's."""
    sets = {}
    for name in (f"miniature/{one}" for one in SETS):
        accuracies = runs.accuracies([base[1], other[1]], name)
        assert accuracies is not None
        sets[name] = {
            base[0]: seeds_interval(accuracies[0]).to_json(),
            other[0]: seeds_interval(accuracies[1]).to_json(),
            "difference": paired_difference(accuracies[1], accuracies[0]).to_json(),
        }
    return {"seeds": len(runs.finished(base[1])), "sets": sets}


def table(found: dict[str, Any], titles: Mapping[str, str]) -> list[str]:
    """Its lines. titles: of the columns, by their names in `found`."""
    lines = [f"| set | {' | '.join(titles.values())} |", "|---" * (1 + len(titles)) + "|"]
    for name, row in found["sets"].items():
        cells = [percent(row[one], signed=one == "difference") for one in titles]
        lines.append(f"| {name.removeprefix('miniature/')} | {' | '.join(cells)} |")
    return lines


def percent(interval: dict[str, Any], *, signed: bool = False) -> str:
    """`97.5 [96.0, 98.7]`."""
    sign = "+" if signed else ""
    return (
        f"{100 * interval['value']:{sign}.1f} [{100 * interval['low']:{sign}.1f}, {100 * interval['high']:{sign}.1f}]"
    )
