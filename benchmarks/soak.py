"""The miniature for thousands of steps with faults at random, beside runs that meet none.

Is anything lost? Does the memory stay flat? Is the result that of an undisturbed run?

    python benchmarks/soak.py                          # 5,000 steps into runs/soak; goes on where it was stopped
    python benchmarks/soak.py --steps 50 --every 10    # a try

Writes benchmarks/results/soak.json and soak.png, and the tables of docs/reliability.md. The faults:

    from outside   SIGKILL, SIGTERM, SIGINT, every `--every` steps on average; the command is then started again
    the disk       no fsync succeeds any more from a random moment on, in one start of four
    from within    a loss that is NaN in one step of 200; a verifier that hangs, leaves, devours memory or throws for
                   one completion in 5,000

Three kinds of runs. `disturbed` meets all of them, and so is many processes. `unkilled` meets those from within alone,
and is one process from its first step to its last: what it holds at its end would show a leak. `undisturbed` ones,
each of another seed, meet none.

Exit status 1 if a step is lost; if the median memory of the last fifth of a run differs from that of its first by more
than 5 % (of `disturbed` without its first process); or if an accuracy of a run with faults lies outside the interval in
which a further undisturbed run is expected: 95 % for all sets together, from the spread of the undisturbed ones
(Student's t; Bonferroni over the sets).
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
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from kills import write_table
from measuring import one_more_run

from luffy.evaluation.statistics import seeds_difference
from luffy.files import append_line, read_lines, write_whole

ROOT = Path(__file__).parents[1]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
NOT_FINITE, MISBEHAVES, DISK_FAILS = 1 / 200, 1 / 5000, 1 / 4
Faults = Literal["none", "within", "all"]
DISTURBED = ("disturbed", "unkilled")  # the runs with faults
CHECKPOINT_EVERY = 25
FIFTHS, FLAT = 5, 0.05  # memory is flat if the last fifth of the steps holds at most this share more or less
CONFIDENCE = 0.95
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


def train_here(output: Path, steps: int, seed: int, faults: Faults) -> None:
    """Train in this process, with its faults. Exit status as that of `luffy train`."""
    import luffy

    overrides = [
        "method=luffy", f"steps={steps}", f"seed={seed}", f"output={output}", f"checkpoint_every={CHECKPOINT_EVERY}",
        "rollouts_every=100", "evaluation.every=0", "evaluation.watch=[]", "reward.workers=1", "reward.deadline=5",
        "problems_per_step=2", "data.on_bad_trace=keep",
    ]  # fmt: skip
    if faults != "none":
        overrides.append("reward.kind=python:soak:misbehaving")
        spoil_losses(seed)
    if faults == "all" and random.random() < DISK_FAILS:
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
        process = start_training(output, steps, seed, "all")
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


def train_to_the_end(output: Path, steps: int, seed: int, faults: Faults) -> None:
    """One process from the first step to the last."""
    if start_training(output, steps, seed, faults).wait():
        raise SystemExit(f"the run did not come to its end; see {output}.log")


def start_training(output: Path, steps: int, seed: int, faults: Faults) -> subprocess.Popen[bytes]:
    """A process that trains; what it says is added to a log."""
    output.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--here", str(output), "--steps", str(steps), "--seed", str(seed)]
    with output.with_name(f"{output.name}.log").open("ab") as log:
        return subprocess.Popen([*command, "--faults", faults], stdout=log, stderr=log)


def steps_done(output: Path) -> int:
    """By the metrics."""
    try:
        return (output / "metrics.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


# -- what came of it


def outcome(folder: Path, undisturbed: Sequence[str], steps: int) -> dict[str, Any]:
    """Everything that is claimed, as numbers; runs by name."""
    expected = expected_accuracy([accuracies(folder / name) for name in undisturbed])
    return {
        "steps": steps,
        "events": read_lines(folder / "disturbed-events.jsonl"),
        "runs": {name: kept_of(folder / name, steps) for name in (*DISTURBED, *undisturbed)},
        "evaluations": {
            name: one | {run: accuracies(folder / run)[name] for run in DISTURBED} for name, one in expected.items()
        },
    }


def kept_of(output: Path, steps: int) -> dict[str, Any]:
    """Whether a run has all of its steps, what was left out, and its memory."""
    metrics = read_lines(output / "metrics.jsonl")
    samples = memory_of(output)
    return {
        "every step once": [line["step"] for line in metrics] == list(range(1, steps + 1)),
        "processes": len({sample["process"] for sample in samples}),
        "updates skipped": sum(line["update/skipped"] for line in metrics),
        "verifier failures": sum(line["verifier/failures"] for line in metrics),
        "memory": drift(samples),
    }


def memory_of(output: Path) -> list[dict[str, Any]]:
    """A sample a step of the processes that trained."""
    return read_lines(output.with_name(f"{output.name}-memory.jsonl"))


def drift(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median memory in each fifth of a run, in whatever process, and how far the last lies from the first.

    Where there are several processes, without the first: it has evaluated the base before it trained, which those that
    go on do not, and holds what that took.
    """
    later = [sample for sample in samples if sample["process"] != samples[0]["process"]] or samples
    ends = [place * len(later) // FIFTHS for place in range(FIFTHS + 1)]
    medians = [statistics.median(one["bytes"] for one in later[start:end]) for start, end in pairwise(ends)]
    change = medians[-1] / medians[0] - 1
    return {"first start": samples[0]["bytes"], "fifths": medians, "drift": change, "flat": abs(change) <= FLAT}


def accuracies(output: Path) -> dict[str, float]:
    """Final accuracy of a run, by set."""
    evaluations = json.loads((output / "summary.json").read_text())["evaluations"]
    return {name: one["avg@1"]["value"] for name, one in evaluations.items()}


def expected_accuracy(runs: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """By set, what these runs reached and the ends between which a further run is expected."""
    found = {}
    for name in runs[0]:
        values = [run[name] for run in runs]
        mean = seeds_difference(values, confidence=1 - (1 - CONFIDENCE) / len(runs[0]))
        assert mean is not None, "an interval needs two undisturbed runs"
        low, high = one_more_run(mean.value, mean.low, mean.high, len(values))
        found[name] = {"undisturbed": values, "low": max(0.0, low), "high": min(1.0, high)}
    return found


def failures(found: dict[str, Any]) -> list[str]:
    """What does not hold, as sentences."""
    lost = [f"{name}: a step is lost or twice" for name, run in found["runs"].items() if not run["every step once"]]
    grown = [f"{name}: memory is not flat" for name, run in found["runs"].items() if not run["memory"]["flat"]]
    outside = [
        f"{run}: {name} is outside"
        for name, one in found["evaluations"].items()
        for run in DISTURBED
        if not within(one, run)
    ]
    return lost + grown + outside


def within(one: dict[str, Any], run: str) -> bool:
    """Whether the accuracy of a run with faults lies where one without is expected."""
    return bool(one["low"] <= one[run] <= one["high"])


def tables(found: dict[str, Any]) -> str:
    """What docs/reliability.md shows."""
    events = found["events"]
    ended = Counter(one["signal"] or ("its end" if one["status"] == 0 else "a full disk") for one in events)
    ways = ", ".join(f"{why} ({times})" for why, times in ended.most_common())
    lines = [
        f"The starts of the disturbed run were ended by {ways}.",
        "",
        "| run | steps | each once | processes | losses that were NaN | completions without a verdict "
        "| memory, median of each fifth, MB | last against first | within 5 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, run in found["runs"].items():
        memory = run["memory"]
        fifths = ", ".join(f"{held / 1e6:.0f}" for held in memory["fifths"])
        begun = f"{memory['first start'] / 1e6:.0f}, then " if run["processes"] > 1 else ""
        lines.append(
            f"| {name} | {found['steps']:,} | {yes(run['every step once'])} | {run['processes']} "
            f"| {run['updates skipped']:.0f} | {run['verifier failures']:.0f} "
            f"| {begun}{fifths} | {memory['drift']:+.1%} | {yes(memory['flat'])} |"
        )
    lines += [
        "",
        f"| set | undisturbed | one more is expected | {' | '.join(f'{run} | within' for run in DISTURBED)} |",
        "|---|---|---|" + "---|---|" * len(DISTURBED),
    ]
    for name, one in found["evaluations"].items():
        others = ", ".join(f"{100 * value:.1f}" for value in sorted(one["undisturbed"]))
        ours = " | ".join(f"{100 * one[run]:.1f} | {yes(within(one, run))}" for run in DISTURBED)
        expected = f"{100 * one['low']:.1f} to {100 * one['high']:.1f}"
        lines.append(f"| {name.rpartition('/')[2]} | {others} | {expected} | {ours} |")
    return "\n".join(lines)


def yes(holds: bool) -> str:
    """A verdict as the tables say it."""
    return "yes" if holds else "**no**"


def draw_curve(samples: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Memory over the steps, a picture for each run, a line for each of its processes."""
    import altair
    import vl_convert

    values = [
        {"run": run, "step": one["step"], "GiB": one["bytes"] / 2**30, "process": str(one["process"])}
        for run, all_of_it in samples.items()
        for one in all_of_it[:: max(1, len(all_of_it) // 1500)]
    ]
    line = (
        altair.Chart()
        .mark_line(strokeWidth=1.2)
        .encode(
            x=altair.X("step:Q"), y=altair.Y("GiB:Q", scale=altair.Scale(zero=True)),
            color=altair.Color("process:N", legend=None),
        )
        .properties(width=760, height=140)
    )  # fmt: skip
    chart = line.facet(row=altair.Row("run:N", title=None, sort=list(samples)), data=altair.Data(values=values))
    path.write_bytes(vl_convert.vegalite_to_png(chart.to_json(), scale=2))


def main() -> None:
    """Soak, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--every", type=float, default=400.0, help="Steps between signals, on average.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--undisturbed", type=int, default=4, help="Runs to compare with, each of another seed.")
    parser.add_argument("--output", type=Path, default=Path("runs/soak"), help="The runs; kept, to go on from.")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--only", help="Train this run alone, and write nothing: a name as under --output.")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--faults", choices=get_args(Faults), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        train_here(given.here, given.steps, given.seed, given.faults)
    undisturbed = {f"undisturbed{number}": given.seed + number for number in range(1, given.undisturbed + 1)}
    for name, seed in (dict.fromkeys(DISTURBED, given.seed) | undisturbed).items():
        output = given.output / name
        if is_finished(output) or (given.only and name != given.only):
            continue
        if name == "disturbed":
            soak(output, given.steps, seed, given.every)
        else:
            train_to_the_end(output, given.steps, seed, "within" if name == "unkilled" else "none")
    if given.only:
        return
    found = outcome(given.output, list(undisturbed), given.steps)
    write_table("soak", tables(found))
    given.results.mkdir(exist_ok=True)
    draw_curve({name: memory_of(given.output / name) for name in found["runs"]}, given.results / "soak.png")
    write_whole(given.results / "soak.json", json.dumps(found, indent=1) + "\n")
    print("\n".join(failures(found) or ["everything holds"]))
    sys.exit(bool(failures(found)))


def is_finished(output: Path) -> bool:
    """Whether a run has come to its end."""
    path = output / "summary.json"
    return path.exists() and json.loads(path.read_text())["status"] == "finished"


if __name__ == "__main__":
    main()
