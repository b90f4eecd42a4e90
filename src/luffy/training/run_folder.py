"""The folder of a run: what is written, where, and how a started run is found again.

    RUN/config.yaml  metrics.jsonl  evaluations.jsonl  evaluations/  rollouts/  traces/  checkpoints/  model/
        summary.json

Files are written beside and renamed, so that a reader never sees half of one. On resume, whatever belongs to steps
after the checkpoint is cut, so that no step appears twice.

The lock belongs to the process, not to the file: where the process is gone, however it ended, the folder is free.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import yaml
from pydantic import TypeAdapter, ValidationError

from luffy.algorithm import METHODS
from luffy.config import Config, differing_keys, flatten, shown_as_differing
from luffy.errors import RunError
from luffy.files import append_line, flush, read_lines, remove, write_lines, write_whole
from luffy.training.world import World

logger = logging.getLogger(__name__)

LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "luffy-rl")


@dataclass(slots=True)
class RunSummary:
    """What a run came to; written to `summary.json`."""

    method: str
    seed: int
    status: str  # running, stopped, failed, finished
    steps: int
    seconds: float
    tokens: dict[str, int]  # trained, generated
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    output: str = ""
    reason: str = ""  # why it stopped before its end, if it was asked to


class RunFolder:
    """Opens, locks and writes one run folder."""

    def __init__(self, config: Config, *, digest: str, processes: int = 1) -> None:
        """digest: of the training data. processes: that train together.

        Raises RunError when the folder holds another run or is in use.
        """
        self._processes = processes
        self.path = Path(config.output)
        self.config = config
        self.differences: list[str] = []  # what a run that has begun is gone on with, other than what it began with
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquire_lock()
        except OSError as error:
            raise RunError(f"{self.path}: the run folder cannot be written ({error.strerror or error}).") from None
        try:
            self._check_or_write_config(digest)
        except BaseException:
            self.close()
            raise

    @property
    def metrics_file(self) -> Path:
        """One JSON object a step."""
        return self.path / "metrics.jsonl"

    @property
    def evaluations_file(self) -> Path:
        """One JSON object an evaluated set and step."""
        return self.path / "evaluations.jsonl"

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def summary(self) -> RunSummary | None:
        """The summary of an earlier start, if there is one."""
        path = self.path / "summary.json"
        if not path.exists():
            return None
        try:
            return TypeAdapter(RunSummary).validate_json(path.read_bytes())
        except (ValidationError, OSError) as error:
            reason = " ".join(str(error).split("\n")[:3])
            raise RunError(f"{path}: cannot be read ({reason}). Delete it to let the run go on.") from None

    def write_summary(self, summary: RunSummary) -> None:
        """Replace `summary.json`."""
        write_whole(self.path / "summary.json", json.dumps(asdict(summary), indent=2) + "\n")

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        append_line(self.metrics_file, {"step": step} | dict(metrics))

    def append_evaluation(self, record: Mapping[str, Any]) -> None:
        """Add a line to `evaluations.jsonl`, in the place of one of the same step and set."""
        others = [
            line
            for line in read_lines(self.evaluations_file)
            if (line.get("step"), line.get("set")) != (record["step"], record["set"])
        ]
        write_lines(self.evaluations_file, [*others, record])

    def evaluations(self) -> list[dict[str, Any]]:
        """The lines of `evaluations.jsonl`."""
        return read_lines(self.evaluations_file)

    def flush(self) -> None:
        """Bring the metrics to the disk: a checkpoint that outlives a power cut must not lack those before it."""
        flush(self.metrics_file)

    def write_rollouts(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """Write `rollouts/step-N.jsonl`, a group a line."""
        write_lines(self.path / "rollouts" / f"step-{step:06d}.jsonl", records)

    def write_traces(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """Write `traces/step-N.jsonl`, a watched trace a line; without any, nothing."""
        if records:
            write_lines(self.path / "traces" / f"step-{step:06d}.jsonl", records)

    def write_generations(self, step: int, benchmark: str, records: Iterable[Mapping[str, Any]]) -> None:
        """Write `evaluations/step-N/SET.jsonl`, a problem a line."""
        write_lines(self.path / "evaluations" / f"step-{step:06d}" / f"{benchmark.replace('/', '-')}.jsonl", records)

    def cut_after(self, step: int) -> None:
        """Remove what belongs to steps after `step`, and what was being written when an earlier start was killed.

        Raises RunError where a file is not as this program writes it.
        """
        for path in (self.metrics_file, self.evaluations_file):
            if path.exists():
                write_lines(path, [line for line in read_lines(path) if _step_in(line, path) <= step])
        for path in [
            path for kind in ("rollouts", "traces", "evaluations") for path in self.path.glob(f"{kind}/step-*")
        ]:
            number = path.stem.removeprefix("step-")
            if number.isdecimal() and int(number) > step:
                remove(path)
        for path in [*self.path.rglob("*.part"), *self.path.rglob("*.before")]:
            remove(path)

    def _acquire_lock(self) -> IO[str]:
        lock = (self.path / ".lock").open("a+")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            holder = lock.read(20).strip()
            lock.close()
            process = f"another process ({holder})" if holder.isdecimal() else "another process"
            raise RunError(
                f"{self.path}: {process} is training in this run folder. Wait for it, or choose another output=."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _LOCKS.add(lock)
        return lock

    def _check_or_write_config(self, digest: str) -> None:
        path = self.path / "config.yaml"
        record: dict[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "data_digest": digest,
            "versions": library_versions(),
            "hardware": hardware() | {"processes": self._processes},
        }
        if path.exists() and self._has_begun():
            earlier = self._refuse_other_run(path, digest)
            record["began_with"] = earlier.get("began_with") or _environment(earlier)
            self.differences = differences(record["began_with"], _environment(record))
            self.differences += self._other_schedule(earlier["config"])
        write_whole(path, yaml.safe_dump(record, sort_keys=False))

    def _other_schedule(self, earlier: Mapping[str, Any]) -> list[str]:
        """Whether the learning rate would have been another: a schedule that falls is as long as the phase."""
        phase = METHODS[self.config.method].phases[-1]
        schedule = self.config.optimizer.schedule if phase == "rl" else self.config.sft.schedule
        steps = earlier.get("steps", self.config.steps)
        if schedule == "constant" or steps == self.config.steps:
            return []
        return [f"the {schedule} schedule is over {steps} steps there, {self.config.steps} here"]

    def _has_begun(self) -> bool:
        """Whether an earlier start came far enough to leave a result; one with a wrong `model=` does not bind."""
        return self.metrics_file.exists() or self.evaluations_file.exists() or any(self.path.glob("checkpoints/step-*"))

    def _refuse_other_run(self, path: Path, digest: str) -> dict[str, Any]:
        """The record of the earlier start, if it is one of this run. Raises RunError."""
        try:
            earlier: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
            before = Config.model_validate(earlier["config"])
        except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, RecursionError):
            raise RunError(f"{path}: cannot be read as the configuration of a run. Choose another output=.") from None
        differing = differing_keys(before, self.config)
        if differing:
            key = differing[0]
            raise RunError(
                f"{self.path} holds a run of another configuration: {shown_as_differing(differing)} "
                f"({key}: {flatten(before)[key]!r} there, {flatten(self.config)[key]!r} here). "
                "Choose another output= or delete the folder."
            )
        if earlier.get("data_digest") != digest:
            raise RunError(
                f"{self.path} holds a run on other data: {self.config.data.train} has changed since. "
                "Choose another output= or delete the folder."
            )
        return earlier


class UnwrittenFolder:
    """The run folder of a process that is not the first: nothing goes through it, checkpoints in parts apart.

    No `RunFolder`, so that it inherits nothing that writes: who uses a `Folder` may call what both have, and the type
    checker names what is missing here.
    """

    def __init__(self, config: Config) -> None:
        self.path, self.config = Path(config.output), config
        self.differences: list[str] = []

    def close(self) -> None:
        """Nothing is held."""

    def summary(self) -> RunSummary | None:
        """The first process tells."""
        return None

    def write_summary(self, summary: RunSummary) -> None:
        """The first process does."""

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """The first process does."""

    def append_evaluation(self, record: Mapping[str, Any]) -> None:
        """The first process does."""

    def evaluations(self) -> list[dict[str, Any]]:
        """What is known of them, only the first process needs."""
        return []

    def flush(self) -> None:
        """Nothing is written."""

    def write_rollouts(self, step: int, records: Iterable[Mapping[str, Any]]) -> None:
        """The first process does."""

    def write_traces(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        """The first process does."""

    def write_generations(self, step: int, benchmark: str, records: Iterable[Mapping[str, Any]]) -> None:
        """The first process does."""

    def cut_after(self, step: int) -> None:
        """The first process does."""


Folder = RunFolder | UnwrittenFolder  # as a process of the run has it


def open_folder(config: Config, digest: str, world: World) -> Folder:
    """The folder as this process of the run has it. Raises RunError on all processes where it cannot be used."""
    opened: list[RunFolder] = []
    try:
        world.from_main(lambda: opened.append(RunFolder(config, digest=digest, processes=world.size)))
    except BaseException:
        for folder in opened:
            folder.close()
        raise
    return opened[0] if opened else UnwrittenFolder(config)


_LOCKS: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _close_inherited_locks() -> None:
    """A forked verifier must not hold the folder when the process that trains is gone."""
    for lock in _LOCKS:
        lock.close()


os.register_at_fork(after_in_child=_close_inherited_locks)


def _step_in(line: Mapping[str, Any], path: Path) -> int:
    step = line.get("step")
    if not isinstance(step, int):
        raise RunError(f"{path}: a line has no step, so the run cannot go on. Choose another output=.")
    return step


def _environment(record: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the last digits of the numbers, by the record of a start."""
    parts = [record.get("versions"), record.get("hardware")]
    return {name: value for part in parts if isinstance(part, Mapping) for name, value in part.items()}


def differences(before: Any, now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments so that numbers may: `torch 2.9 there, 2.13 here`."""
    if not isinstance(before, Mapping):
        return []
    names = [name for name in now if name != "cores" and name in before and before[name] != now[name]]
    return [f"{name} {before[name]} there, {now[name]} here" for name in names]


def library_versions() -> dict[str, str]:
    """Versions of what decides the numbers."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def hardware() -> dict[str, Any]:
    """The processor, its cores, and the GPU if there is one."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "gpu": gpu}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
