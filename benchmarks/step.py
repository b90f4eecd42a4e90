"""A whole training step and its update against TRL's `GRPOTrainer`, and where the time of our step goes.

`python benchmarks/step.py`. Both sides run their own trainers, a process each, and take turns step by step
(`duel.py`, `contestant.py`); both do the same work (`workload.py`): same model, prompts, lengths, traces, dtype and
threads. Goals: a LUFFY step at least 3 times as fast, its update alone (log-probs, loss, backward, clipping, optimizer)
at least 4 times, a plain on-policy step of equal lengths at least 1.5 times. Products are float32 on both sides; where
the processor has units for bfloat16, the 135M steps are also measured under bfloat16 autocast on both sides.

Outside generating, verifying, updating and synchronising a step may spend at most 3 %: measured on `luffy.train` with
the miniature's recipe, from step to step, its verifier in a process of its own, metrics written.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

from duel import ContestantError, column, duel, has_trl
from measuring import NO_UNITS, has_bfloat16, outcome, ratio, report, spread
from workload import Work

from luffy import load_config, train

REPEATS = {"miniature": 9, "135M": 5}  # steps of each side
GOALS = {"luffy": {"step": ">= 3", "update": ">= 4"}, "on-policy": {"step": ">= 1.5"}}
CASES = {
    "luffy-miniature": Work("miniature", groups=4, lengths=(60, 83, 107, 130, 153, 177, 200), trace=1000),
    "luffy-135M": Work("135M", groups=1, lengths=(60, 70, 80, 90, 100, 110, 120), trace=480, token_budget=4096, rows=4),
    "on-policy-miniature": Work("miniature", groups=16, lengths=(35,) * 8, rows=128),
    "on-policy-135M": Work("135M", groups=2, lengths=(35,) * 8, rows=16),
}
CASES |= {f"{case}-bfloat16": replace(CASES[case], autocast="bfloat16") for case in ("luffy-135M", "on-policy-135M")}
STEPS, SKIPPED = 30, 5  # of the miniature's recipe
PARTS = ("generate", "verify", "update", "synchronise")


def against_trl(case: str) -> None:
    """A row for each part of the step that has a goal."""
    work = CASES[case]
    method = "luffy" if work.trace else "on-policy"
    model = work.shape if work.autocast == "none" else f"{work.shape}, bfloat16 autocast"
    goals = GOALS[method]
    names = {"step": f"whole step, {method}, {model}", "update": f"update alone, {method}, {model}"}
    try:
        if not has_trl():
            raise ContestantError("TRL is not installed: pip install 'luffy-rl[bench]'")
        if work.autocast == "bfloat16" and not has_bfloat16():
            raise ContestantError(NO_UNITS)
        ours, trl = duel(work, REPEATS[work.shape])
    except ContestantError as error:
        report(
            f"step-{case}", [outcome(names[part], "TRL", None, goal, note=str(error)) for part, goal in goals.items()]
        )
        return
    rows = []
    for part, goal in goals.items():
        faster = ratio(column(trl, part), column(ours, part))
        medians = [spread(column(steps, part))["median"] for steps in (ours, trl)]
        note = f"{medians[0]:.2f} s against {medians[1]:.2f} s, {work.trained_tokens:,} tokens"
        rows.append(outcome(names[part], "TRL", faster, goal, note=note))
    report(f"step-{case}", rows, ours=ours, trl=trl)


def outside() -> tuple[dict[str, Any], dict[str, Any]]:
    """The share of our step that is none of its parts."""
    seen: list[tuple[float, dict[str, Any]]] = []

    def note_step(_step: int, _steps: int, metrics: dict[str, Any]) -> None:
        seen.append((time.perf_counter(), metrics))

    with tempfile.TemporaryDirectory() as folder:
        overrides = [f"output={folder}/run", f"steps={STEPS}", "evaluation.watch=[]", "evaluation.benchmarks=[]"]
        train(load_config("recipes/miniature.yaml", overrides), on_step=note_step)
    kept = seen[SKIPPED:-1]  # the last step also saves the model
    wholes = [after - before for (before, _), (after, _) in pairwise(kept)]
    parts = {part: [metrics.get(f"time/{part}", 0.0) for _, metrics in kept[1:]] for part in PARTS}
    shares = [1 - sum(values) / whole for *values, whole in zip(*parts.values(), wholes, strict=True)]
    medians = {part: spread(values)["median"] / spread(wholes)["median"] for part, values in parts.items()}
    note = ", ".join(f"{part} {100 * share:.1f} %" for part, share in medians.items())
    row = outcome("time outside those parts, miniature", "step", spread(shares), "<= 3 %", note=note)
    return row, {"step": wholes} | parts


def measure_parts() -> None:
    """The row on where our time goes."""
    row, parts = outside()
    report("step-parts", [row], seconds=parts)


def main() -> None:
    """Measure all, or what is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=", ".join([*CASES, "parts"]))
    for what in parser.parse_args().what or [*CASES, "parts"]:
        measure_parts() if what == "parts" else against_trl(what)


if __name__ == "__main__":
    main()
