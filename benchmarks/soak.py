"""The miniature for thousands of steps with faults at random, beside runs that meet none.

Is anything lost? Does the memory stay flat? Is the result that of an undisturbed run?

    python benchmarks/soak.py                          # 5,000 steps into runs/soak; goes on where it was stopped
    python benchmarks/soak.py --steps 50 --every 10    # a try

Writes benchmarks/results/soak.json and soak.png, and the tables of docs/reliability.md. Memory is looked at twice:
over all steps of a run, in whatever process, which says what the machine must have; and within the process that lived
longest, which would show a leak. Exit status 1 if either changes by more than 5 %, a step is lost, or an accuracy lies
outside the interval of the undisturbed runs. The faults:

    from outside   SIGKILL, SIGTERM, SIGINT, every `--every` steps on average; the command is then started again
    the disk       no fsync succeeds any more from a random moment on, in one start of four
    numbers        a loss that is NaN in one step of 200
    the verifier   hangs, leaves, devours memory or throws for one completion in 5,000
"""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kills import write_table

from luffy.files import append_line, read_lines, write_whole

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
NOT_FINITE, MISBEHAVES, DISK_FAILS = 1 / 200, 1 / 5000, 1 / 4
CHECKPOINT_EVERY = 25
WARM_UP = 30  # steps of a start after which its memory counts
FIFTHS, FLAT = 5, 0.05  # memory is flat if the last fifth of the steps holds at most this share more or less
MOST_STARTS = 1000


def misbehaving(completion: str, answer: str) -> bool:
    """The verifier of the disturbed run."""
    from luffy.reward import verify

    if random.random() < MISBEHAVES:
        random.choice((_hang, _leave, _devour, _throw))()
    return verify("exact", completion, answer).correct


def _hang() -> None:
    time.sleep(3600)


def _leave() -> None:
    os._exit(3)


def _devour() -> None:
    bytes(2**34)


def _throw() -> None:
    raise KeyError("thrown on purpose")


# -- the process that trains


def train_here(output: Path, steps: int, seed: int, disturbed: bool) -> None:
    """Train in this process; with its faults, if it is to be disturbed. Exit status as that of `luffy train`."""
    import luffy

    overrides = [
        "method=luffy", f"steps={steps}", f"seed={seed}", f"output={output}", f"checkpoint_every={CHECKPOINT_EVERY}",
        "rollouts_every=100", "evaluation.every=0", "evaluation.watch=[]", "reward.workers=1", "reward.deadline=5",
        "problems_per_step=4", "evaluation.limit=100", "data.on_bad_trace=keep",
    ]  # fmt: skip
    if disturbed:
        overrides.append("reward.kind=python:soak:misbehaving")
        spoil_losses(seed)
        if random.random() < DISK_FAILS:
            fail_disk(after=random.randrange(5, 400))
    memory = output.with_name(f"{output.name}-memory.jsonl")
    begun = time.monotonic()

    def watch(step: int, _: int, __: dict[str, Any]) -> None:
        seconds = time.monotonic() - begun
        append_line(memory, {"process": os.getpid(), "step": step, "bytes": resident(), "seconds": seconds})

    config = luffy.load_config(ROOT / "recipes" / "miniature.yaml", overrides)
    try:
        summary = luffy.train(config, on_step=watch)
    except luffy.RunError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    sys.exit(0 if summary.status == "finished" else 130)


def spoil_losses(seed: int) -> None:
    """Make the loss of some steps NaN; which ones follows from the seed, so that a step done again is spoilt again."""
    from luffy.training.learner import Learner

    apply = Learner._apply_gradient

    def spoilt(self: Learner, step: int, numbers: float) -> dict[str, float]:
        bad = random.Random(f"{seed}/{step}").random() < NOT_FINITE
        return apply(self, step, math.nan if bad else numbers)

    Learner._apply_gradient = spoilt  # type: ignore[method-assign]


def fail_disk(after: int) -> None:
    """From the `after`-th fsync on, there is no space left."""
    sync, calls = os.fsync, 0

    def failing(handle: Any) -> None:
        nonlocal calls
        calls += 1
        if calls >= after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    os.fsync = failing  # type: ignore[assignment]


def resident() -> int:
    """Bytes of memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- from outside


def soak(output: Path, steps: int, seed: int, every: float) -> None:
    """Start the disturbed run again and again, until it has come to its end."""
    events = output.with_name(f"{output.name}-events.jsonl")
    for start in range(len(read_lines(events)), MOST_STARTS):
        done, began = steps_done(output), time.monotonic()
        process = start_training(output, steps, seed, disturbed=True)
        until = done + random.expovariate(1 / every)
        while process.poll() is None and steps_done(output) < until:
            time.sleep(0.2)
        given = random.choice(SIGNALS) if process.poll() is None else None
        if given is not None:
            process.send_signal(given)
        status = process.wait()
        append_line(
            events,
            {"start": start, "from": done, "to": steps_done(output), "signal": given.name if given else None,
             "status": status, "seconds": time.monotonic() - began},
        )  # fmt: skip
        if status == 0:
            return
    raise SystemExit(f"not finished after {MOST_STARTS} starts; see {output}.log")


def start_training(output: Path, steps: int, seed: int, *, disturbed: bool) -> subprocess.Popen[bytes]:
    """A process that trains; what it says is added to a log."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--here", str(output), "--steps", str(steps), "--seed", str(seed)]
    with output.with_name(f"{output.name}.log").open("ab") as log:
        return subprocess.Popen([*command, *(["--disturbed"] if disturbed else [])], stdout=log, stderr=log)


def steps_done(output: Path) -> int:
    """By the metrics."""
    try:
        return (output / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


# -- what came of it


def outcome(disturbed: Path, undisturbed: Sequence[Path], steps: int) -> dict[str, Any]:
    """Everything that is claimed, as numbers."""
    metrics = read_lines(disturbed / "metrics.jsonl")
    summary = json.loads((disturbed / "summary.json").read_text())
    samples = memory_of(disturbed)
    others = [json.loads((path / "summary.json").read_text())["evaluations"] for path in undisturbed]
    return {
        "steps": steps,
        "every step once": [line["step"] for line in metrics] == list(range(1, steps + 1)),
        "updates skipped": sum(line["update/skipped"] for line in metrics),
        "verifier failures": sum(line["verifier/failures"] for line in metrics),
        "events": read_lines(disturbed.with_name(f"{disturbed.name}-events.jsonl")),
        "memory": {path.name: both_drifts(memory_of(path), steps) for path in (disturbed, *undisturbed)},
        "steps up": steps_up(samples, metrics),
        "evaluations": {
            name: compare(one, [other[name] for other in others]) for name, one in summary["evaluations"].items()
        },
        "samples": samples,
    }


def memory_of(output: Path) -> list[dict[str, Any]]:
    """A sample a step of the processes that trained."""
    return read_lines(output.with_name(f"{output.name}-memory.jsonl"))


def compare(one: dict[str, Any], others: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """An accuracy of the disturbed run, and whether it lies between the intervals' ends of the undisturbed ones."""
    (ours,), theirs = one.values(), [accuracy for other in others for accuracy in other.values()]
    low, high = min(other["low"] for other in theirs), max(other["high"] for other in theirs)
    return {"disturbed": ours["value"], "undisturbed": [other["value"] for other in theirs], "low": low, "high": high,
            "within": low <= ours["value"] <= high}  # fmt: skip


def steps_up(samples: Sequence[dict[str, Any]], metrics: Sequence[dict[str, Any]]) -> dict[str, int]:
    """How often a process held over 1 % more than ever before, once warm; how often the batch was its largest so far.

    What is freed is kept for the next batch, so memory is that of the largest batch yet; a leak would not wait for one.
    """
    totals = [0.0, *(line["tokens/trained"] for line in metrics)]
    found = {"all": 0, "at the largest batch so far": 0}
    seen: dict[int, list[tuple[float, int]]] = {}  # of each process: tokens and bytes, step by step
    for sample in samples:
        step, before = sample["step"], seen.setdefault(sample["process"], [])
        tokens = totals[step] - totals[step - 1]
        if len(before) >= WARM_UP and sample["bytes"] > 1.01 * max(held for _, held in before):
            found["all"] += 1
            found["at the largest batch so far"] += tokens >= max(earlier for earlier, _ in before)
        before.append((tokens, sample["bytes"]))
    return found


def both_drifts(samples: Sequence[dict[str, Any]], steps: int) -> dict[str, dict[str, Any]]:
    """How memory changes over a run and within its longest process."""
    return {"all steps": drift_of_run(samples, steps), "one process": drift_of_process(samples)}


def drift_of_run(samples: Sequence[dict[str, Any]], steps: int) -> dict[str, Any]:
    """Median memory in each fifth of a run's steps, in whatever process, and how far the last lies from the first."""
    fifths: list[list[int]] = [[] for _ in range(FIFTHS)]
    for sample in samples:
        fifths[(sample["step"] - 1) * FIFTHS // steps].append(sample["bytes"])
    return {"steps": steps} | _drift([statistics.median(fifth) for fifth in fifths if fifth])


def drift_of_process(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The same of the process that lived longest, after its first steps."""
    processes: dict[int, list[int]] = {}
    for sample in samples:
        processes.setdefault(sample["process"], []).append(sample["bytes"])
    longest = max(processes.values(), key=len)[WARM_UP:]
    fifth = len(longest) // FIFTHS
    parts = [longest[place * fifth : (place + 1) * fifth] for place in range(FIFTHS - 1)] + [longest[-fifth:]]
    return {"steps": len(longest)} | _drift([statistics.median(part) for part in parts if fifth])


def _drift(medians: Sequence[float]) -> dict[str, Any]:
    """By which share the last of some memories differs from the first; nothing is said of fewer than five."""
    if len(medians) < FIFTHS:
        return {"fifths": list(medians), "drift": None, "flat": None}
    drift = medians[-1] / medians[0] - 1
    return {"fifths": list(medians), "drift": drift, "flat": abs(drift) <= FLAT}


def tables(found: dict[str, Any]) -> str:
    """What docs/reliability.md shows."""
    events, up = found["events"], found["steps up"]
    ended = Counter(one["signal"] or ("its end" if one["status"] == 0 else "a full disk") for one in events)
    ways = ", ".join(f"{why} ({times})" for why, times in ended.most_common())
    once = "each of them" if found["every step once"] else "**not** each of them"
    lines = [
        f"{found['steps']:,} steps, {once} in the metrics once; {len(events)} starts, ended by {ways}; "
        f"{found['updates skipped']:.0f} updates left out because of a loss that was NaN, "
        f"{found['verifier failures']:.0f} completions without a verdict.",
        "",
        "| memory | of | steps | median of each fifth, MB | last against first | within 5 % |",
        "|---|---|---|---|---|---|",
    ]
    for run, measures in found["memory"].items():
        for measure, one in measures.items():
            if one["drift"] is not None:
                fifths = ", ".join(f"{held / 1e6:.0f}" for held in one["fifths"])
                verdict = "yes" if one["flat"] else "**no**"
                lines.append(f"| {run} | {measure} | {one['steps']:,} | {fifths} | {one['drift']:+.1%} | {verdict} |")
    lines += [
        "",
        f"Of the {up['all']} times that a process of the disturbed run held 1 % more than ever before, after its first "
        f"{WARM_UP} steps, {up['at the largest batch so far']} were at its largest batch so far.",
        "",
        "| set | disturbed | undisturbed | their 95 % intervals, joined | within |",
        "|---|---|---|---|---|",
    ]
    for name, one in found["evaluations"].items():
        others = ", ".join(f"{100 * value:.0f}" for value in one["undisturbed"])
        ends = f"{100 * one['low']:.1f} to {100 * one['high']:.1f}"
        within = "yes" if one["within"] else "**no**"
        lines.append(f"| {name.rpartition('/')[2]} | {100 * one['disturbed']:.0f} | {others} | {ends} | {within} |")
    return "\n".join(lines)


def draw_curve(samples: Sequence[dict[str, Any]], path: Path) -> None:
    """Memory over the steps, a line for each process."""
    import altair
    import vl_convert

    thinned = samples[:: max(1, len(samples) // 4000)]
    values = [{"step": one["step"], "GiB": one["bytes"] / 2**30, "process": str(one["process"])} for one in thinned]
    chart = (
        altair.Chart(altair.Data(values=values), width=760, height=260, title="memory of the processes that trained")
        .mark_line(strokeWidth=1.2)
        .encode(
            x=altair.X("step:Q"), y=altair.Y("GiB:Q", scale=altair.Scale(zero=True)),
            color=altair.Color("process:N", legend=None),
        )
    )  # fmt: skip
    path.write_bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=2))


def main() -> None:
    """Soak, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--every", type=float, default=400.0, help="Steps between signals, on average.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--undisturbed", type=int, default=2, help="Runs to compare with, each of another seed.")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="The runs; kept, to go on from.")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--disturbed", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        train_here(given.here, given.steps, given.seed, given.disturbed)
    disturbed = given.output / "disturbed"
    undisturbed = [given.output / f"undisturbed{number or ''}" for number in range(given.undisturbed)]
    if not is_finished(disturbed):
        soak(disturbed, given.steps, given.seed, given.every)
    for seed, one in enumerate(undisturbed, given.seed):
        if not is_finished(one) and start_training(one, given.steps, seed, disturbed=False).wait():
            raise SystemExit(f"the undisturbed run did not come to its end; see {one}.log")
    found = outcome(disturbed, undisturbed, given.steps)
    write_table("soak", tables(found))
    given.results.mkdir(exist_ok=True)
    draw_curve(found.pop("samples"), given.results / "soak.png")
    write_whole(given.results / "soak.json", json.dumps(found, indent=1) + "\n")
    print(json.dumps({name: value for name, value in found.items() if name != "events"}, indent=1))
    sound = found["every step once"] and all(
        one["flat"] is not False for measures in found["memory"].values() for one in measures.values()
    )
    sys.exit(not (sound and all(one["within"] for one in found["evaluations"].values())))


def is_finished(output: Path) -> bool:
    """Whether a run has come to its end."""
    path = output / "summary.json"
    return path.exists() and json.loads(path.read_text())["status"] == "finished"


if __name__ == "__main__":
    main()
