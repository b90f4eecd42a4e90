"""Put a comparison's numbers into README.md and docs/results.md, so that nobody types a figure.

    python benchmarks/write_results.py runs/results --tuning runs/tuning/tuning.json --dials runs/dials/dials.json

Replaces what stands between `<!-- NAME -->` and `<!-- end NAME -->`, and keeps comparison.json, the tuning, the
map over the dials and the picture under docs/results/.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from measuring import ROOT, replace

__all__ = ["replace"]  # benchmarks/verifiers.py takes it from here

KEPT = ROOT / "docs" / "results"


def percent(metric: dict[str, Any]) -> str:
    """A value with its interval."""
    return f"{100 * metric['value']:.1f} [{100 * metric['low']:.0f}, {100 * metric['high']:.0f}]"


def accuracy_table(comparison: dict[str, Any], sets: list[str]) -> str:
    """Rows: base and methods; columns: sets."""
    rows = {"base": {"evaluations": comparison["base"]}} | comparison["methods"]
    lines = ["| method | " + " | ".join(name.removeprefix("miniature/") for name in sets) + " |"]
    lines.append("|---|" + "---|" * len(sets))
    for name, entry in rows.items():
        cells = [percent(entry["evaluations"][one]["avg@1"]) if one in entry["evaluations"] else "-" for one in sets]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def seeds_table(folder: Path, methods: list[str], one_set: str = "miniature/hard") -> str:
    """Each run by itself: accuracy on one set and the share of its completions that are worded like the teacher's."""
    lines = ["| method | " + one_set.removeprefix("miniature/") + ", by seed | in the teacher's style, by seed |"]
    lines.append("|---|---|---|")
    for method in methods:
        runs = sorted((folder / method).glob("seed-*/evaluations.jsonl"))
        ends = [[one for one in map(json.loads, run.open()) if one["set"] == one_set][-1] for run in runs]
        accuracy = ", ".join(f"{100 * one['avg@1']['value']:.1f}" for one in ends)
        style = ", ".join(f"{100 * one['style/teacher']:.0f}" for one in ends)
        lines.append(f"| {method} | {accuracy} | {style} |")
    return "\n".join(lines)


def verdict_table(comparison: dict[str, Any]) -> str:
    """One line a claim and set."""
    lines = ["| claim | set | difference [95 % interval] | here |", "|---|---|---|---|"]
    for one in comparison["verdicts"]:
        interval = f"{one['difference']:+.3f} [{one['low']:+.3f}, {one['high']:+.3f}]"
        lines.append(
            f"| {one['claim']} | {one['set'].removeprefix('miniature/')} | {interval} | **{one['verdict']}** |"
        )
    return "\n".join(lines)


def cost_table(comparison: dict[str, Any]) -> str:
    """Tokens and time a run."""
    lines = ["| method | seeds | tokens trained | tokens generated | seconds a run |", "|---|---|---|---|---|"]
    for name, entry in comparison["methods"].items():
        tokens = entry["tokens"]
        numbers = (
            entry["seeds"],
            f"{tokens['trained']:,.0f}",
            f"{tokens['generated']:,.0f}",
            f"{entry['seconds']:.0f}",
        )
        lines.append(f"| {name} | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(lines)


def tuning_table(tuning: dict[str, Any]) -> str:
    """Every setting that was tried; the chosen ones are bold."""
    lines = [
        "| method | setting | validation accuracy at the end, by seed | mean over the course |",
        "|---|---|---|---|",
    ]
    for label, entry in tuning.items():
        method, _, setting = label.partition(",")
        final = ", ".join(f"{100 * value:.1f}" for value in entry["final"])
        name = f"**{method}**" if entry["chosen"] else method
        lines.append(f"| {name} | {setting.replace(',', ', ')} | {final} | {100 * entry['area']:.1f} |")
    return "\n".join(lines)


def dials_table(dials: dict[str, Any], sets: list[str]) -> str:
    """A row a setting and method, columns as in the accuracy table."""
    lines = ["| setting | method | " + " | ".join(name.removeprefix("miniature/") for name in sets) + " |"]
    lines.append("|---|---|" + "---|" * len(sets))
    for entry in dials.values():
        for place, (method, evaluations) in enumerate(entry["methods"].items()):
            cells = [percent(evaluations[one]["avg@1"]) for one in sets]
            lines.append(f"| {entry['summary'] if place == 0 else ''} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bases_table(bases: dict[str, Any]) -> str:
    """What the bases can do, a row each."""
    lines = [
        "| base | sampled completions | worked out but for one step at most | of these right | right when each step is "
        "begun for it | trace tokens with probability below 0.01 / 0.1 / 0.5, teacher's style | own style |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in bases.items():
        shares = [
            " / ".join(f"{100 * tokens[f'below {bound}']:.1f} %" for bound in ("0.01", "0.1", "0.5"))
            for tokens in (one["share of trace tokens by probability"][style] for style in ("teacher", "base"))
        ]
        made = f"{100 * one['made to work, right']:.0f} %"
        cells = (name, f"{one['sampled']:,}", one["worked to the end"], one["of these right"], made, *shares)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def main() -> None:
    """Write everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    parser.add_argument("--tuning", type=Path)
    parser.add_argument("--dials", type=Path)
    arguments = parser.parse_args()
    comparison = json.loads((arguments.comparison / "comparison.json").read_text())
    KEPT.mkdir(exist_ok=True)
    shutil.copy(arguments.comparison / "comparison.json", KEPT / "miniature.json")
    shutil.copy(arguments.comparison / "picture.png", KEPT / "miniature.png")
    sets = list(comparison["base"])
    for path in (ROOT / "README.md", ROOT / "docs" / "results.md"):
        replace(path, "accuracy", accuracy_table(comparison, sets))
        replace(path, "verdicts", verdict_table(comparison))
        replace(path, "cost", cost_table(comparison))
    replace(ROOT / "docs" / "results.md", "seeds", seeds_table(arguments.comparison, list(comparison["methods"])))
    replace(ROOT / "docs" / "results.md", "bases", bases_table(json.loads((KEPT / "bases.json").read_text())))
    if arguments.tuning:
        tuning = json.loads(arguments.tuning.read_text())
        shutil.copy(arguments.tuning, KEPT / "tuning.json")
        replace(ROOT / "docs" / "results.md", "tuning", tuning_table(tuning))
    if arguments.dials:
        shutil.copy(arguments.dials, KEPT / "dials.json")
        replace(ROOT / "docs" / "results.md", "dials", dials_table(json.loads(arguments.dials.read_text()), sets))


if __name__ == "__main__":
    main()
