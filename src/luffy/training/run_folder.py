"""The folder of a run: what is written, where, and how a started run is found again.

    RUN/config.yaml  metrics.jsonl  evaluations.jsonl  evaluations/  rollouts/  traces/  checkpoints/  model/
        summary.json

Files are written beside and renamed, so that a reader never sees half of one. On resume, whatever belongs to steps
after the checkpoint is cut, so that no step appears twice.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import yaml

from luffy.config import Config, differing_keys, flatten
from luffy.errors import RunError
from luffy.files import append_line, read_lines, write_lines, write_whole

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


class RunFolder:
    """Opens, locks and writes one run folder."""

    def __init__(self, config: Config, *, digest: str) -> None:
        """digest: of the training data. Raises RunError when the folder holds another run or is in use."""
        self.path = Path(config.output)
        self.config = config
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
            return RunSummary(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise RunError(f"{path}: cannot be read ({error}). Delete it to let the run go on.") from None

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
            if (line["step"], line["set"]) != (record["step"], record["set"])
        ]
        write_lines(self.evaluations_file, [*others, record])

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
        """Remove what belongs to steps after `step`."""
        for path in (self.metrics_file, self.evaluations_file):
            if path.exists():
                kept = [line for line in read_lines(path) if line["step"] <= step]
                write_lines(path, kept)
        files = [path for kind in ("rollouts", "traces", "evaluations") for path in self.path.glob(f"{kind}/step-*")]
        for path in files:
            if int(path.stem.split("-")[1]) > step:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _acquire_lock(self) -> IO[str]:
        lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise RunError(f"{self.path}: another process is training in this run folder.") from None
        return lock

    def _check_or_write_config(self, digest: str) -> None:
        path = self.path / "config.yaml"
        record = {
            "config": self.config.model_dump(mode="json"),
            "data_digest": digest,
            "versions": library_versions(),
            "hardware": hardware(),
        }
        if path.exists() and self._has_begun():
            self._refuse_other_run(path, digest)
        write_whole(path, yaml.safe_dump(record, sort_keys=False))

    def _has_begun(self) -> bool:
        """Whether an earlier start came far enough to leave a result; one with a wrong `model=` does not bind."""
        return self.metrics_file.exists() or self.evaluations_file.exists() or any(self.path.glob("checkpoints/step-*"))

    def _refuse_other_run(self, path: Path, digest: str) -> None:
        try:
            earlier = yaml.safe_load(path.read_text(encoding="utf-8"))
            before = Config.model_validate(earlier["config"])
        except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError):
            raise RunError(f"{path}: cannot be read as the configuration of a run. Choose another output=.") from None
        differing = differing_keys(before, self.config)
        if differing:
            key = differing[0]
            more = f" and {len(differing) - 6} more" if len(differing) > 6 else ""
            raise RunError(
                f"{self.path} holds a run of another configuration: {', '.join(differing[:6])}{more} differ "
                f"({key}: {flatten(before)[key]!r} there, {flatten(self.config)[key]!r} here). "
                "Choose another output= or delete the folder."
            )
        if earlier.get("data_digest") != digest:
            raise RunError(
                f"{self.path} holds a run on other data: {self.config.data.train} has changed since. "
                "Choose another output= or delete the folder."
            )


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
