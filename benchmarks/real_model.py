"""A real language model learns: SmolLM2-135M-Instruct, LUFFY and its rivals, on the two cores of a laptop.

    python scripts/export_smollm2.py models/smollm2-135m
    python benchmarks/real_model.py --model models/smollm2-135m --output runs/smollm2

Makes the problems (`real_model_data.py`), tries each method's learning rates on the validation set, runs the comparison
of recipes/smollm2-sums.yaml at the rates that came out best, and writes docs/results/smollm2/ and the tables of
docs/results.md. Resumable, on another day too: finished runs are not repeated, an interrupted one goes on from its last
checkpoint, and what is left is printed. Weights of finished runs are deleted, since nothing here needs them again (2 GB
a run); their completions, metrics and evaluations stay.

The search: each RL method has the same four rates, and a lower one where the lowest was best; SFT, which takes less
time, four from 1e-6 up, at its full length; SFT then RL takes the best of these for its first stage and has the rates
of RL for its second. One seed, which is none of the comparison's. The higher accuracy on the validation set at the end
is taken.

Two runs at a time, a core each, are faster here than one after the other with both cores: 79 s against 111 s.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from real_model_data import write_sets
from write_results import accuracy_table, replace, verdict_table

from luffy.comparison.runner import Comparison, Job, plan_comparison, run_comparison, total_steps
from luffy.comparison.verdicts import write_comparison
from luffy.files import read_lines, write_whole
from luffy.report import write_picture, write_report

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "smollm2-sums.yaml"
KEPT = ROOT / "docs" / "results" / "smollm2"
SETS = ("sums", "longer", "worded", "unrelated")
METHODS = ("luffy", "on_policy", "sft", "sft_rl", "rl_sft", "mixed")
RL_RATES = (3e-6, 1e-5, 3e-5, 1e-4)
LOWER_RATE = 1e-6  # for methods whose best rate was the lowest of these
SFT_RATES = (1e-6, 1e-5, 5e-5, 2e-4)
TUNING_SEED = 100
TUNING_STEPS = 20  # of RL
WATCH_EVERY = 10  # steps of the comparison, between which `sums` is measured

Point = dict[str, float | int]


def rl_points(*further: float) -> list[Point]:
    """The rates that every RL method is tried at, and further ones."""
    return [{"optimizer.learning_rate": rate, "steps": TUNING_STEPS} for rate in (*further, *RL_RATES)]


GRID: dict[str, list[Point]] = {
    "luffy": rl_points(),
    "sft": [{"sft.learning_rate": rate} for rate in SFT_RATES],
    "on_policy": rl_points(LOWER_RATE),
    "rl_sft": rl_points(),
    "mixed": rl_points(),
    "sft_rl": rl_points(LOWER_RATE),  # after `sft`: the rate of its first stage is taken from there
}


def overrides(model: Path, output: Path, sets: Sequence[str]) -> list[str]:
    """Where the model and the problems are, and what is measured."""
    benchmarks = [str(output / "data" / f"{name}.jsonl") for name in sets]
    train = output / "data" / "train.jsonl"
    watched = benchmarks[:1]
    return [
        f"model={model}",
        f"data.train={train}",
        f"evaluation.benchmarks={json.dumps(benchmarks)}",
        f"evaluation.watch={json.dumps(watched)}",
    ]


def search_jobs(model: Path, output: Path, methods: Sequence[str]) -> Iterator[Job]:
    """A run for every point of the methods; those of `sft_rl` can be planned once those of `sft` are run."""
    common = overrides(model, output, ["validation"])
    for method in methods:
        first_stage: Point = {}
        if method == "sft_rl":
            first_stage = {"sft.learning_rate": rate(best(output, "sft"))}
        for point in GRID[method]:
            shown = {key: value for key, value in (first_stage | point).items() if key != "steps"}
            label = ",".join([method, *(f"{key}={value:g}" for key, value in shown.items())])
            given = [
                *common,
                *(f"{key}={value}" for key, value in (first_stage | point).items()),
                "evaluation.watch=[]",
            ]
            yield from plan_comparison(RECIPE, [method], [TUNING_SEED], output / "tuning" / label, given).jobs


def search(model: Path, output: Path, parallel: int) -> None:
    """Run every point that is not finished."""
    for methods in ([method for method in GRID if method != "sft_rl"], ["sft_rl"]):
        plan = Comparison(output / "tuning", list(search_jobs(model, output, methods)))
        run(f"search: {', '.join(methods)}", plan, parallel)
    for label, score in scores(output).items():
        print(f"{label}: {100 * score:.1f} % of the validation set", flush=True)


def write_tuning(output: Path) -> Path:
    """OUTPUT/tuning.json: the points that are finished, and which of a method's points is the best, once all are."""
    found = scores(output)
    whole = [method for method, points in GRID.items() if sum(is_of(name, method) for name in found) == len(points)]
    chosen = {best(output, method) for method in whole}
    table = {name: {"final": [score], "chosen": name in chosen} for name, score in found.items()}
    path = output / "tuning.json"
    path.write_text(json.dumps(table, indent=2) + "\n")
    return path


def scores(output: Path) -> dict[str, float]:
    """Accuracy on the validation set at the end of each finished run of the search, by label, as the grid has them."""
    found = {}
    for folder in (output / "tuning").glob("*,*"):
        for summary in folder.glob("*/seed-*/summary.json"):
            if json.loads(summary.read_text())["status"] == "finished":
                found[folder.name] = float(read_lines(summary.with_name("evaluations.jsonl"))[-1]["avg@1"]["value"])
    order = list(GRID)
    return {name: found[name] for name in sorted(found, key=lambda name: (order.index(name.split(",")[0]), rate(name)))}


def best(output: Path, method: str) -> str:
    """The label of the method's best point; of equal ones, that with the lower rate."""
    found = {label: score for label, score in scores(output).items() if is_of(label, method)}
    return max(found, key=lambda label: (found[label], -rate(label)))


def is_of(label: str, method: str) -> bool:
    """Whether a label is one of a method's points."""
    return label.startswith(f"{method},")


def rate(label: str) -> float:
    """The last learning rate in a label."""
    return float(label.rpartition("=")[2])


def compare(model: Path, output: Path, seeds: int, parallel: int) -> None:
    """Run the comparison of the recipe; write OUTPUT/comparison with its numbers, page and picture."""
    given = [*overrides(model, output, SETS), *chosen_settings(output), f"evaluation.every={WATCH_EVERY}"]
    run("comparison", plan_comparison(RECIPE, METHODS, range(seeds), output / "comparison", given), parallel)


def chosen_settings(output: Path) -> list[str]:
    """What the search chose for each method; the recipe has the same where the search came out the same.

    Nothing where there was no search: then the recipe's settings are those of the search that is in docs/results.
    """
    if not scores(output):
        return []
    settings = [(method, one) for method in GRID for one in best(output, method).split(",")[1:]]
    return [f"methods.{method}.{setting}" for method, setting in settings]


def run(name: str, plan: Comparison, parallel: int) -> None:
    """Run what is not finished, and say what is left."""
    left = [job for job in plan.jobs if not job.finished]
    print(f"{name}: {len(plan.jobs) - len(left)} of {len(plan.jobs)} runs are finished", flush=True)
    for job in left:
        print(f"    left: {job.folder} ({total_steps(job.config)} steps)", flush=True)
    run_comparison(plan, parallel=parallel, on_poll=lambda state: delete_weights(state.jobs))


def delete_weights(jobs: Sequence[Job]) -> None:
    """Keep what finished runs measured, not their models: 2 GB each."""
    for job in jobs:
        for weights in (job.folder / "checkpoints", job.folder / "model"):
            if weights.exists() and job.finished:
                shutil.rmtree(weights)


def keep(output: Path) -> None:
    """Copy the numbers of finished runs to docs/results/smollm2/, without rollouts and completions."""
    KEPT.mkdir(parents=True, exist_ok=True)
    comparison = output / "comparison"
    kept = [write_tuning(output)] if scores(output) else []
    if any(comparison.glob("*/seed-*/summary.json")):
        kept += [write_comparison(comparison), write_picture(comparison, comparison / "picture.png")]
        kept += [write_report([comparison], comparison / "report.html")]
    for path in kept:
        shutil.copy(path, KEPT / path.name)
    for run_folder in sorted(path.parent for path in comparison.glob("*/seed-*/summary.json")):
        summary = json.loads((run_folder / "summary.json").read_text())
        if summary["status"] != "finished":
            continue
        target = KEPT / "runs" / run_folder.parent.name / run_folder.name
        target.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.jsonl", "evaluations.jsonl"):
            shutil.copy(run_folder / name, target / name)
        summary["output"] = str(run_folder.relative_to(output))  # and not where on this machine
        write_whole(target / "summary.json", json.dumps(summary, indent=2) + "\n")


def write_tables() -> None:
    """Put the kept numbers into docs/results.md."""
    page = ROOT / "docs" / "results.md"
    replace(page, "smollm2 tuning", tuning_table(json.loads((KEPT / "tuning.json").read_text())))
    if (KEPT / "comparison.json").exists():
        comparison = json.loads((KEPT / "comparison.json").read_text())
        replace(page, "smollm2 accuracy", accuracy_table(comparison, list(SETS)))
        replace(page, "smollm2 verdicts", verdict_table(comparison))
        replace(page, "smollm2 runs", runs_table())


def runs_table() -> str:
    """A row a run: accuracy on each set at the end, tokens, and time at the median step."""
    lines = [
        f"| method | seed | {' | '.join(SETS)} | tokens trained | tokens generated | minutes |",
        "|---|---|" + "---|" * (len(SETS) + 3),
    ]
    for method in METHODS:
        for folder in sorted((KEPT / "runs" / method).glob("seed-*")):
            summary = json.loads((folder / "summary.json").read_text())
            if summary["status"] != "finished":
                continue
            ends = {one["set"]: 100 * one["avg@1"]["value"] for one in read_lines(folder / "evaluations.jsonl")}
            cells = [method, summary["seed"], *(f"{ends[name]:.0f}" for name in SETS)]
            cells += [f"{summary['tokens'][kind]:,.0f}" for kind in ("trained", "generated")]
            lines.append("| " + " | ".join(map(str, [*cells, f"{undisturbed_minutes(folder):.1f}"])) + " |")
    return "\n".join(lines)


def undisturbed_minutes(folder: Path) -> float:
    """Steps times the median time of a step, phase by phase: a run that was paused for a while is not slower for it.

    Evaluations are not in it.
    """
    seconds: dict[str, list[float]] = {}
    for line in read_lines(folder / "metrics.jsonl"):
        seconds.setdefault(line["phase"], []).append(line["time/step"])
    return sum(len(steps) * statistics.median(steps) for steps in seconds.values()) / 60


def tuning_table(tuning: dict[str, Any]) -> str:
    """Every point of the search; the chosen ones are bold."""
    lines = ["| method | setting | validation accuracy |", "|---|---|---|"]
    for label, entry in tuning.items():
        method, _, setting = label.partition(",")
        name = f"**{method}**" if entry["chosen"] else method
        lines.append(f"| {name} | {setting.replace(',', ', ')} | {100 * entry['final'][0]:.1f} |")
    return "\n".join(lines)


def main() -> None:
    """Every stage that is asked for, in order."""
    stages = ("data", "search", "compare", "keep", "tables")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("models/smollm2-135m"))
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, the cores shared out between them")
    parser.add_argument("--stages", nargs="+", choices=stages, default=list(stages))
    arguments = parser.parse_args()
    if "data" in arguments.stages:
        write_sets(arguments.output / "data")
    if "search" in arguments.stages:
        search(arguments.model, arguments.output, arguments.parallel)
    if "compare" in arguments.stages:
        compare(arguments.model, arguments.output, arguments.seeds, arguments.parallel)
    if "keep" in arguments.stages:
        keep(arguments.output)
    if "tables" in arguments.stages:
        write_tables()


if __name__ == "__main__":
    main()
