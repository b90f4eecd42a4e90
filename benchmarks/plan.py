"""What `luffy plan` says of a step against what the step takes: peak memory and seconds, on this machine's CPU.

`python benchmarks/plan.py`. Random models of four shapes, of lengths that differ, and a further case that was not
looked at until the first version of the arithmetic had been compared with it. Goals: memory within 15 %, time within
30 %. The plan is given the lengths and nothing that was measured of the case: its rates are those of
`luffy plan --measure`, taken in the same call.

A case trains in a process of its own, on one thread. Counted is the growth of its resident size, from after a step of a
tiny model (the program and its libraries are there by then) to the peak of the second step; the verifier has processes
of its own and is not counted. The C library keeps part of what is freed, so memory is measured where it gives it back
at once (`MALLOC_MMAP_THRESHOLD_`), which costs time; seconds are measured without that, and what was resident then is
said beside. Seconds are processor seconds, the least over steps after the first, as rates are the
least of several: what else the machine does only adds.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from measuring import NO_UNITS, RESULTS, ROOT, outcome, processor, report, show
from measuring import replace as replace_text
from memory import resident
from workload import SHAPES, Lengths, Work, build_model, draw_problems, reward, save_model

from luffy import load_config, train
from luffy.planning import Device, estimate_memory
from luffy.planning.measure import measure_device
from luffy.planning.memory import micro_batch_tokens
from luffy.planning.shape import shape_of
from luffy.planning.work import Lengths as PlannedLengths
from luffy.planning.work import Seconds, count_work, time_step


@dataclass(frozen=True, slots=True)
class Case:
    """A model, what a step of it does, and how many steps are measured."""

    work: Work
    steps: int
    held_out: bool = False


FOUND = RESULTS / "plan.json"
LUFFY_135M = Work("135M", 1, (60, 70, 80, 90, 100, 110, 120), trace=480, token_budget=1024)
CASES = {
    "5M, LUFFY": Case(Work("5M", 2, (60, 83, 107, 130, 153, 177, 200), trace=480, token_budget=4096), 3),
    "27M, on-policy": Case(Work("27M", 3, (96,) * 8, prompt=60, token_budget=4096), 2),
    "60M, LUFFY, recomputed": Case(
        Work("60M", 1, (50, 75, 100, 125, 150), trace=600, gradient_checkpointing=True, token_budget=2048), 2
    ),
    "135M, LUFFY": Case(LUFFY_135M, 2),
    "135M, LUFFY, bfloat16 autocast": Case(replace(LUFFY_135M, autocast="bfloat16"), 3),
    "135M, LUFFY, adapter": Case(replace(LUFFY_135M, adapter_rank=16), 2),
    "135M, LUFFY, adapter, base in bfloat16": Case(replace(LUFFY_135M, adapter_rank=16, dtype="bfloat16"), 3),
    "135M, LUFFY, adapter, base in 4 bits": Case(replace(LUFFY_135M, adapter_rank=16, quantize="nf4"), 2),
    "85M, on-policy": Case(Work("85M", 1, (40, 80, 120, 160), prompt=100, token_budget=2048), 2, True),
}


WARM_UP = Work("tiny", groups=1, lengths=(5, 6, 7), trace=9, prompt=4)


def run_case(work: Work, steps: int) -> None:
    """Train, and print the growth in bytes, and of each step after the first the seconds."""
    _train(WARM_UP, 1)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    peak, ends, processor, parts = 0, [], [], []

    def after_step(_step: int, _steps: int, metrics: dict[str, Any]) -> None:
        nonlocal peak
        peak = resident("VmHWM")
        ends.append(time.perf_counter())
        processor.append(time.process_time())
        parts.append({name: metrics.get(f"time/{name}", 0.0) / metrics["time/step"] for name in ("generate", "update")})

    _train(work, steps + 1, after_step)
    found = {
        "grown": peak - before,
        "seconds": _differences(processor),
        "wall": _differences(ends),
        "shares": parts[1:],
    }
    print(json.dumps(found))


def _differences(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise(times)]


def _train(work: Work, steps: int, on_step: Any = None) -> None:
    with tempfile.TemporaryDirectory() as name, Lengths(work.lengths, work.prompt).at_decoders():
        folder = Path(name)
        save_model(SHAPES[work.shape], folder)
        config = load_config(None, work.recipe(folder) | {"steps": steps})
        train(config, problems=draw_problems(work), reward=reward, on_step=on_step)


def measure(case: Case, *, steps: int, returning: bool) -> dict[str, Any]:
    """What a case's own process says. returning: whether memory that is freed goes back to the system at once."""
    command = [sys.executable, __file__, "--run", case.work.to_json(), "--steps", str(steps)]
    environment = os.environ | ({"MALLOC_MMAP_THRESHOLD_": "131072"} if returning else {})
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def predict(work: Work, device: Device) -> tuple[float, Seconds]:
    """Bytes and seconds that the plan has for a case."""
    shape = shape_of(build_model(SHAPES[work.shape], device="meta").config.to_dict())
    config = load_config(None, work.recipe(Path("model")))
    lengths = [[*work.lengths, *([work.trace] if work.trace else [])]] * work.groups
    prompts = [work.prompt] * work.groups
    tokens = micro_batch_tokens(prompts, lengths, work.token_budget)
    repeats = work.trained_tokens / (work.groups * (work.prompt + sum(lengths[0]) - work.group_size))
    memory = estimate_memory(
        shape, config, units=device.bfloat16 is not None, prompt=work.prompt, micro_batches=tokens, repeats=repeats
    )
    mean = sum(work.lengths) / len(work.lengths)
    given = PlannedLengths(work.prompt, mean, work.trace, "given", longest=max(work.lengths))
    seconds = time_step(shape, config, given, count_work(shape, config, given), device, 1)
    return memory.peak, seconds


def check(name: str, case: Case, device: Device) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of a case, and what they were made from."""
    in_use = measure(case, steps=1, returning=True)["grown"]
    timed = measure(case, steps=case.steps, returning=False)
    bytes_, seconds = predict(case.work, device)
    taken = min(timed["seconds"])
    what = f"{name}{' (held out)' if case.held_out else ''}"
    resident_note = f"{timed['grown'] / 1e9:.2f} GB resident, as the C library gives back late"
    rows = [
        outcome(
            f"memory, {what}", f"{in_use / 1e9:.2f} GB in use", abs(bytes_ / in_use - 1), "<= 15 %",
            note=f"planned {bytes_ / 1e9:.2f} GB; {resident_note}",
        ),
        outcome(
            f"time, {what}", f"{taken:.2f} s a step", abs(seconds.step / taken - 1), "<= 30 %",
            note=f"planned {seconds.generation:.2f} generation, {seconds.update + seconds.optimizer:.2f} update",
        ),
    ]  # fmt: skip
    planned = {"planned bytes": bytes_, "planned seconds": asdict(seconds), "rates": asdict(device)}
    return rows, timed | {"in use": in_use} | planned


def main(names: Sequence[str]) -> None:
    """Measure the rates, then each case; where some are named, what was found of the others stays."""
    torch.set_num_threads(1)  # of this process and, by the environment, of the cases: processor time is wall time then
    os.environ["OMP_NUM_THREADS"] = "1"
    device = measure_device()
    before = _earlier(names)
    rows: list[dict[str, Any]] = before.get("rows", [])
    raw: dict[str, Any] = before.get("cases", {})
    for name in names or list(CASES):
        if "bfloat16" in (CASES[name].work.autocast, CASES[name].work.dtype) and device.bfloat16 is None:
            print(f"{name}: left out, {NO_UNITS}")
            continue
        more, raw[name] = check(name, CASES[name], device)
        rows += more
        show("plan", more)
    report("plan", rows, load=os.getloadavg()[0], cases=raw)
    replace_text(ROOT / "docs" / "scaling.md", "plan", as_table({name: raw[name] for name in CASES if name in raw}))


def _earlier(names: Sequence[str]) -> dict[str, Any]:
    """What was found of the cases that are not measured now; their rates were measured then."""
    if not (names and FOUND.is_file()):
        return {}
    found: dict[str, Any] = json.loads(FOUND.read_text())
    told = [f"{name}{' (held out)' * CASES[name].held_out}" for name in names]
    kept = [row for row in found["rows"] if row["what"].partition(", ")[2] not in told]
    return {"rows": kept, "cases": {name: case for name, case in found["cases"].items() if name not in names}}


def as_table(cases: dict[str, Any]) -> str:
    """Planned beside measured, in Markdown."""
    lines = ["| case | GB planned | in use | resident | seconds planned | measured |", "|---|---|---|---|---|---|"]
    for name, case in cases.items():
        sizes = [case[key] / 1e9 for key in ("planned bytes", "in use", "grown")]
        planned, taken = case["planned seconds"], min(case["seconds"])
        seconds = sum(planned.values())
        lines.append(
            f"| {name}{' (held out)' if CASES[name].held_out else ''} | {sizes[0]:.2f} | {sizes[1]:.2f} "
            f"({sizes[0] / sizes[1] - 1:+.0%}) | {sizes[2]:.2f} | {seconds:.1f} | {taken:.1f} "
            f"({seconds / taken - 1:+.0%}) |"
        )
    return "\n".join([*lines, "", f"One thread of a processor that calls itself {processor()}."])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help=", ".join(CASES))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    run_case(Work(**json.loads(given.run)), given.steps) if given.run else main(given.cases)
