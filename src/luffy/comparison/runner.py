"""Run methods x seeds under equal conditions: same base, problems, traces and evaluations; each run is a process.

COMPARISON/METHOD/seed-K/   a run folder each; a comparison that was killed goes on where it stopped
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import yaml

from luffy.config import Config, differing_keys, load_config, shown_as_differing
from luffy.data import parse_benchmark
from luffy.errors import RunError
from luffy.files import parse_json
from luffy.planning.machine import usable_cores

POLL_SECONDS = 0.5


@dataclass(slots=True)
class Job:
    """One run of the comparison."""

    method: str
    seed: int
    config: Config
    command: list[str]
    process: subprocess.Popen[bytes] | None = None
    failed: bool = False

    @property
    def folder(self) -> Path:
        """Its run folder."""
        return Path(self.config.output)

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.folder.with_name(self.folder.name + ".log")

    @property
    def finished(self) -> bool:
        """Whether it has come to its end, now or in an earlier start."""
        try:
            summary = parse_json((self.folder / "summary.json").read_text())
        except (OSError, ValueError):
            return False
        return bool(summary.get("status") == "finished" and summary["steps"] >= self.steps)

    @property
    def steps(self) -> int:
        """Steps over all phases."""
        return total_steps(self.config)

    def latest(self) -> dict[str, Any]:
        """The newest metrics line, beside it the newest `accuracy` on the first watched set; empty before the first."""
        watched = [parse_benchmark(given)[1] for given in self.config.evaluation.watch[:1]]
        newest = _newest(self.folder / "metrics.jsonl", lambda line: "step" in line)
        evaluation = _newest(self.folder / "evaluations.jsonl", lambda line: line.get("set") in watched)
        for name, value in evaluation.items():
            if name.startswith("avg@"):
                newest["accuracy"] = value["value"]
        return newest


def _newest(path: Path, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The last wanted object of a JSONL file that is being written; parsed from its end, since this is asked often."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return {}
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            if wanted(found := parse_json(line)):
                return dict(found)
    return {}


@dataclass(slots=True)
class Comparison:
    """The runs of a comparison and where they lie."""

    output: Path
    jobs: list[Job] = field(default_factory=list)


def plan_comparison(
    recipe: Path, methods: Sequence[str], seeds: Sequence[int], output: Path, overrides: Sequence[str] = ()
) -> Comparison:
    """Validate the configuration of every run before any is started. Raises ConfigError."""
    comparison = Comparison(output)
    for seed in seeds:  # seeds outside, so that an unfinished comparison has whole seeds of all methods
        for method in methods:
            given = [*overrides, f"method={method}", f"seed={seed}", f"output={output / method / f'seed-{seed}'}"]
            command = [sys.executable, "-m", "luffy", "train", str(recipe), *given]
            comparison.jobs.append(Job(method, seed, load_config(recipe, given), command))
    return comparison


def run_comparison(
    comparison: Comparison, *, parallel: int = 1, on_poll: Callable[[Comparison], None] | None = None
) -> None:
    """Run what is not finished, `parallel` at a time, the processor's cores shared out between them.

    Raises RunError when a finished run of these folders had another configuration, before any is started; and at the
    end when a run failed, naming it and its log; the other runs are finished first.
    """
    for job in comparison.jobs:
        _refuse_stale(job)
    waiting = [job for job in comparison.jobs if not job.finished]
    threads = max(1, usable_cores() // parallel)
    running: list[Job] = []
    with _ended_by_termination():
        try:
            while waiting or running:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    job.process = _start(job, threads)
                    running.append(job)
                time.sleep(POLL_SECONDS)
                for job in [job for job in running if job.process and job.process.poll() is not None]:
                    running.remove(job)
                    job.failed = not job.finished
                if on_poll:
                    on_poll(comparison)
        except BaseException:
            _stop(running)
            raise
    failed = [job for job in comparison.jobs if job.failed]
    if failed:
        job = failed[0]
        raise RunError(
            f"{len(failed)} of {len(comparison.jobs)} runs failed; the first, {job.method} with seed {job.seed}, says: "
            f"{_last_line(job.log)} (whole log: {job.log}). The same command goes on."
        )


def total_steps(config: Config) -> int:
    """Steps of a run over all its phases."""
    from luffy.training.plan import plan_phases

    return plan_phases(config)[-1].end


def _refuse_stale(job: Job) -> None:
    """A finished run of another configuration must not pass for the one that was asked for."""
    if not job.finished:
        return
    try:
        record = yaml.safe_load((job.folder / "config.yaml").read_text(encoding="utf-8"))
        differing = differing_keys(Config.model_validate(record["config"]), job.config)
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError):
        what_to_do = "delete the folder or choose another --output"
        raise RunError(f"{job.folder}/config.yaml: cannot be read; {what_to_do}.") from None
    if differing:
        raise RunError(
            f"{job.folder} holds a finished run of another configuration ({shown_as_differing(differing)}). "
            "Choose another --output or delete the folder."
        )


def _start(job: Job, threads: int) -> subprocess.Popen[bytes]:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    with _append(job.log) as log:
        return subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )


def _append(path: Path) -> IO[bytes]:
    return path.open("ab")


@contextlib.contextmanager
def _ended_by_termination() -> Iterator[None]:
    """SIGTERM ends the block as an exception does, so that no run is left behind; with the exit status of shells."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # Python handles signals there alone
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop(jobs: Sequence[Job]) -> None:
    """Let the runs leave a checkpoint, then end them."""
    for process in _alive(jobs):
        process.send_signal(signal.SIGTERM)
    for process in _alive(jobs):
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()


def _alive(jobs: Sequence[Job]) -> Iterator[subprocess.Popen[bytes]]:
    return (job.process for job in jobs if job.process is not None and job.process.poll() is None)


def _last_line(path: Path) -> str:
    try:
        lines = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        return "nothing"
    return lines[-1] if lines else "nothing"
