"""Kill training at random moments, start it again, and compare with a run that was never interrupted, bit by bit.

    python benchmarks/kills.py                       # 36 kills; table to docs/reliability.md, results/kills.json
    python benchmarks/kills.py --kills 12 --seed 7   # other moments

Every start is a process of its own that runs `luffy train` and dies by SIGKILL: at a random moment of a random step, or
at a random one of the calls that bring a file to its place (fsync, rename), before it or after it. A run is killed
several times before it may end; then its weights, optimizer, metrics (without times), evaluations and rollouts must be
those of the undisturbed run. Starts are forked from a process that has imported everything, so that one takes a second
and not ten.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

KILLS_A_RUN = 3
CLOCKED = ("time/", "perf/tokens_per_second")  # metrics that depend on the clock
TINY = [
    "steps=5", "checkpoint_every=2", "problems_per_step=2", "rollout.group_size=3", "rollout.max_tokens=24",
    "data.miniature.problems=6", "data.miniature.traced=6", "data.miniature.shortest=1", "data.miniature.longest=2",
    "reward.workers=0", "sft.steps=3", "sft.batch_size=2", "sft.learning_rate=1e-3", "optimizer.learning_rate=1e-3",
    "rollouts_every=1",
]  # fmt: skip
EVALUATED = ["evaluation.benchmarks=miniature/short", "evaluation.watch=miniature/short", "evaluation.every=2",
             "evaluation.limit=2", "evaluation.max_tokens=8"]  # fmt: skip
HALVES = "updates_per_step=2"
AHEAD = ["rollout.ahead=1", "objective.importance_cap=2"]
DYNAMIC = ["rollout.redraw=1", "data.drop_solved=1", "reward.kind=python:kills:some_digits_fail"]
CASES: dict[str, list[str]] = {
    "luffy": ["method=luffy", HALVES, *EVALUATED],
    "on_policy": ["method=on_policy", "optimizer.schedule=cosine", "optimizer.warmup_steps=2"],
    "luffy_clip": ["method=luffy_clip", HALVES],
    "mixed": ["method=mixed", "objective.kl_coefficient=0.1", "objective.entropy_coefficient=0.01"],
    "on_policy_shaping": ["method=on_policy_shaping", "objective.scale=std"],
    "rl_sft": ["method=rl_sft", HALVES],
    "sft": ["method=sft"],
    "sft_rl": ["method=sft_rl", HALVES, *EVALUATED],
    "luffy, one step ahead": ["method=luffy", *AHEAD],
    "sft_rl, one step ahead": ["method=sft_rl", *AHEAD],
    "on_policy, redraw and drop_solved": ["method=on_policy", *DYNAMIC],
    "luffy, redraw and drop_solved, ahead": ["method=luffy", *DYNAMIC, *AHEAD],
}


def some_digits_fail(completion: str, answer: str) -> bool:  # noqa: ARG001 (signature of a reward function)
    """A reward that solves some groups whole and tells apart the rollouts of others."""
    return completion[-1:] not in ("0", "3", "7")


@dataclass(frozen=True, slots=True)
class Kill:
    """A SIGKILL and what came of it."""

    case: str
    moment: str
    equal: bool


# -- processes


class Launcher:
    """A process that has imported everything and forks one that runs `luffy` for every start that is asked for."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--launcher"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def start(self, arguments: Sequence[str], log: Path, die_at: int | None = None) -> int:
        """Start `luffy ARGUMENTS`, its output added to `log`. die_at: number of the writing call that kills it.

        Returns the process id; `wait` must be called for it.
        """
        return int(self._ask({"arguments": list(arguments), "log": str(log), "die_at": die_at}))

    def wait(self, process: int) -> int:
        """Wait for the end of a process. Returns its exit status, negative for the signal that killed it."""
        return int(self._ask({"wait": process}))

    def close(self) -> None:
        """End the launcher."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def launch() -> None:
    """The launcher's own process: read requests, fork. It never computes a gradient: those threads survive no fork."""
    import torch

    import luffy.training
    from luffy.config import load_config
    from luffy.policy import load_model

    torch.set_num_threads(1)
    loaded = load_model("miniature", load_config().policy)  # imports what that needs
    assert loaded is not None
    assert luffy.training is not None
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
            continue
        process = os.fork()
        if not process:
            _run_command(request)
        print(process, flush=True)


def _run_command(request: dict[str, Any]) -> None:
    """In the forked process: run the command and end."""
    status = 1
    try:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        for stream in (1, 2):
            os.dup2(log, stream)
        if request["die_at"] is not None:
            die_while_writing(request["die_at"])
        sys.argv = ["luffy", *request["arguments"]]
        from luffy.cli import main

        main()
        status = 0
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def die_while_writing(call: int) -> None:
    """Kill this process at its `call`-th fsync or rename: before it where `call` is even, after it where it is odd."""
    calls = 0

    def deadly(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*given: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            where = os.readlink(f"/proc/self/fd/{given[0]}") if isinstance(given[0], int) else given[0]
            if calls == call and call % 2 == 0:
                _die(f"before {name} of {where}")
            result = function(*given, **named)
            if calls == call:
                _die(f"after {name} of {where}")
            return result

        return wrapped

    os.fsync = deadly("fsync", os.fsync)
    os.rename = deadly("rename", os.rename)
    os.replace = deadly("rename", os.replace)


def _die(moment: str) -> None:
    os.write(1, f"\nkilled {moment}\n".encode())
    os.kill(os.getpid(), signal.SIGKILL)


# -- one run


def command(case: str, folder: Path) -> list[str]:
    """The command line of a case."""
    recipe = folder.parent / "empty.yaml"
    recipe.write_text("model: miniature\n")
    return ["train", str(recipe), *TINY, *CASES[case], f"output={folder}"]


def train_undisturbed(launcher: Launcher, case: str, folder: Path) -> float:
    """Run a case to its end. Returns the seconds that a step took."""
    log = folder.with_suffix(".log")
    status = launcher.wait(launcher.start(command(case, folder), log))
    if status != 0:
        raise SystemExit(f"{case}: exit status {status}: {log.read_text()}")
    steps = [json.loads(line)["time/step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return float(sum(steps) / len(steps))


def kill_in_a_step(launcher: Launcher, case: str, folder: Path, step: int, delay: float) -> str | None:
    """Start, and kill `delay` seconds after the metrics of `step` are there. Returns the moment; None: it had ended."""
    process = launcher.start(command(case, folder), folder.with_suffix(".log"))
    while count_lines(folder / "metrics.jsonl") < step and not _has_ended(process):
        time.sleep(0.002)
    time.sleep(delay)
    os.kill(process, signal.SIGKILL)
    if launcher.wait(process) == 0:
        return None
    part = next(iter(folder.glob("checkpoints/*.part")), None)
    done = count_lines(folder / "metrics.jsonl")
    return f"while {part.stem} was written" if part else f"after step {done}" if done else "before step 1"


def kill_while_writing(launcher: Launcher, case: str, folder: Path, call: int) -> str | None:
    """Start, and let it die at its `call`-th call that writes. Returns which that was; None: there were not so many."""
    log = folder.with_suffix(".log")
    if launcher.wait(launcher.start(command(case, folder), log, die_at=call)) != -signal.SIGKILL:
        return None
    last = log.read_text(errors="replace").rstrip().splitlines()[-1]
    return last.removeprefix("killed ").replace(f"{folder}/", "").replace(str(folder), "the run folder")


def differences(run: Path, undisturbed: Path) -> list[str]:
    """What differs between two runs that should be the same, bit by bit; empty: nothing does."""
    compared: list[tuple[str, Any, Any]] = [
        (name, (run / name).read_bytes(), (undisturbed / name).read_bytes())
        for name in ("model/model.safetensors", *_optimizers(undisturbed))
    ]
    compared.append(("metrics", _numbers(run), _numbers(undisturbed)))
    for pattern in ("evaluations.jsonl", "evaluations/*/*", "rollouts/*", "traces/*"):
        ours, theirs = ({str(one.relative_to(path)): one.read_text() for one in path.glob(pattern)}
                        for path in (run, undisturbed))  # fmt: skip
        compared.append((pattern, ours, theirs))
    different = [name for name, ours, theirs in compared if ours != theirs]
    left = [str(path) for ending in ("part", "before", "damaged") for path in run.rglob(f"*.{ending}")]
    return different + left


def _optimizers(run: Path) -> list[str]:
    newest = max(run.glob("checkpoints/step-*"))
    return [f"checkpoints/{newest.name}/optimizer.safetensors"]


def _numbers(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(CLOCKED)} for line in lines]


def count_lines(path: Path) -> int:
    """Whole lines of a file that may not be there yet."""
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def _has_ended(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


# -- the table


def write_table(name: str, text: str) -> None:
    """Put text between the markers of that name in docs/reliability.md."""
    path = Path(__file__).parents[1] / "docs" / "reliability.md"
    before, begin, rest = path.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end {name} -->")
    path.write_text(f"{before}{begin}{text}\n{end}{after}")


@contextmanager
def launcher_and_folder() -> Iterator[tuple[Launcher, Path]]:
    """A launcher and an empty folder, both gone at the end."""
    launcher, folder = Launcher(), Path(tempfile.mkdtemp(prefix="kills-"))
    try:
        yield launcher, folder
    finally:
        launcher.close()
        shutil.rmtree(folder, ignore_errors=True)


def kill_and_compare(
    launcher: Launcher, case: str, folder: Path, undisturbed: Path, step_seconds: float, generator: random.Random
) -> list[Kill]:
    """Kill one run `KILLS_A_RUN` times, let it end, compare."""
    moments: list[str] = []
    while len(moments) < KILLS_A_RUN:
        if generator.random() < 0.5:
            done = count_lines(folder / "metrics.jsonl")
            step = done + generator.randrange(3)
            moment = kill_in_a_step(launcher, case, folder, step, generator.random() * step_seconds)
        else:
            moment = kill_while_writing(launcher, case, folder, generator.randrange(1, 90))
        if moment is None:  # it came to its end first: begin anew
            shutil.rmtree(folder)
            moments.clear()
        else:
            moments.append(moment)
    train_undisturbed(launcher, case, folder)
    different = differences(folder, undisturbed)
    if different:
        print(f"{case}: differs in {different}", file=sys.stderr)
    return [Kill(case, moment, not different) for moment in moments]


def kill_all(count: int, seed: int, cases: Sequence[str]) -> Iterator[Kill]:
    """At least `count` kills, the cases in turn."""
    generator, done = random.Random(seed), 0
    with launcher_and_folder() as (launcher, folder):
        step_seconds: dict[str, float] = {}
        while done < count:
            for place, case in enumerate(cases):
                undisturbed = folder / f"undisturbed-{place}"
                if case not in step_seconds:
                    step_seconds[case] = train_undisturbed(launcher, case, undisturbed)
                run = folder / f"run-{done}"
                kills = kill_and_compare(launcher, case, run, undisturbed, step_seconds[case], generator)
                done += len(kills)
                yield from kills
                shutil.rmtree(run)
                if done >= count:
                    return


def main() -> None:
    """Kill, compare, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--kills", type=int, default=36)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default="", help="Those whose name begins so; default: all.")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "kills.json")
    given = parser.parse_args()
    if given.launcher:
        launch()
        return
    cases = [case for case in CASES if case.startswith(given.cases)]
    kills, table = [], ["| run | killed | equal |", "|---|---|---|"]
    for kill in kill_all(given.kills, given.seed, cases):
        kills.append(kill)
        table.append(f"| {kill.case} | {kill.moment} | {'yes' if kill.equal else '**no**'} |")
        print(table[-1], flush=True)
    equal = sum(kill.equal for kill in kills)
    table += ["", f"{equal} of {len(kills)} kills left a run that ended bitwise as the undisturbed one."]
    print(table[-1])
    if not given.cases:
        write_table("kills", "\n".join(table))
    given.output.parent.mkdir(exist_ok=True)
    given.output.write_text(
        json.dumps({"seed": given.seed, "kills": [asdict(kill) for kill in kills]}, indent=1) + "\n"
    )
    sys.exit(equal < len(kills))


if __name__ == "__main__":
    main()
