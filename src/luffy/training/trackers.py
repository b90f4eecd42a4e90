"""Metrics to TensorBoard, Weights & Biases, trackio or MLflow, beside RUN/metrics.jsonl, which stays the truth.

accelerate's trackers do the talking, each in a thread of its own. One that is missing, slow, down or raises is named
once in a warning; the run neither stops nor waits for it.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import Empty, Full, Queue
from threading import Lock, Thread
from typing import Any, Protocol, Self

from luffy.config import Config, flatten
from luffy.errors import LuffyError
from luffy.files import read_lines
from luffy.redaction import without_secrets

logger = logging.getLogger(__name__)

WAITING = 1000  # records that a tracker may be behind; newer ones are then left out
PATIENCE = 5.0  # seconds that the end of a run waits for all trackers together
DEFAULTS = {  # of the environment, unless it says otherwise
    "WANDB_SILENT": "true",  # it writes a page about itself between our lines, and asks for a key where there is none
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # what it reports of its use goes to its makers, not where the user said
}
INSTALL = {
    "tensorboard": "pip install 'luffy-rl[tensorboard]'",
    "wandb": "pip install wandb",
    "trackio": "pip install trackio",
    "mlflow": "pip install mlflow",
}

OnStep = Callable[[int, int, dict[str, Any]], None]  # step, steps in all, metrics
Numbers = dict[str, float]


class Tracker(Protocol):
    """What is used of accelerate's trackers."""

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Take the numbers of a step."""

    def finish(self) -> None:
        """Write what is still held."""


Start = Callable[[str, Config, int], Tracker]  # name, configuration, first step -> a tracker that has been started


def start_tracker(name: str, config: Config, first_step: int) -> Tracker:
    """Start accelerate's tracker of that name and tell it the configuration. Raises whatever its package raises.

    first_step: numbers of this and later steps that an earlier start has left are replaced, where the tracker can.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    for variable, value in DEFAULTS.items():
        os.environ.setdefault(variable, value)
    logging.getLogger("urllib3").setLevel(logging.ERROR)  # else it tells of every try to reach a server that is down
    if name == "trackio":
        _silence_trackio()
    folder = Path(config.output) / "trackers"
    folder.mkdir(parents=True, exist_ok=True)
    run = f"{config.method}, seed {config.seed}"
    arguments: dict[str, dict[str, Any]] = {
        "tensorboard": {"run_name": "tensorboard", "logging_dir": str(folder), "purge_step": first_step},
        "wandb": {"run_name": "luffy", "name": run, "dir": str(folder)},
        "trackio": {"run_name": "luffy", "name": run},
        "mlflow": {"experiment_name": "luffy", "run_name": run},
    }
    tracker = LOGGER_TYPE_TO_CLASS[name](**arguments[name])
    tracker.start()
    settings = {key: value for key, value in flatten(config).items() if key not in ("output", "methods")}
    tracker.store_init_configuration(
        {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
    )
    started: Tracker = tracker
    return started


def _silence_trackio() -> None:
    """It prints to stdout, where results go, and has no setting against it."""
    importlib.import_module("trackio")
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "trackio":
            vars(module)["print"] = lambda *_, **__: None


class Trackers:
    """The trackers of a run; a context manager, at whose end they have taken everything or have been given up."""

    def __init__(self, config: Config, *, start: Start | None = None) -> None:
        """start: starts one of them, in place of `start_tracker`."""
        self._config = config
        names = [name for name in dict.fromkeys(config.tracker) if _installed(name)]
        self._feeds = [_Feed(name, config, start or start_tracker) for name in names]
        self._evaluations = Path(config.output) / "evaluations.jsonl"
        self._size = -1  # bytes of it when it was last looked at
        self._first: int | None = None  # the first step of this start
        self._told: set[tuple[int, str]] = set()  # (step, set) of evaluations that were handed over

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tell_evaluations()
        until = time.monotonic() + PATIENCE
        for feed in self._feeds:
            feed.end()
        for feed in self._feeds:
            feed.wait(until)

    def following(self, on_step: OnStep | None) -> OnStep | None:
        """An `on_step` that also hands every step to the trackers."""
        if not self._feeds:
            return on_step

        def tell(step: int, steps: int, metrics: dict[str, Any]) -> None:
            self._first = step if self._first is None else self._first
            self._tell_evaluations()
            self._tell(step, {name: value for name, value in metrics.items() if name != "accuracy"})
            if on_step:
                on_step(step, steps, metrics)

        return tell

    def _tell(self, step: int, values: Mapping[str, Any]) -> None:
        numbers = {
            name: value
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool)
        }
        for feed in self._feeds:
            feed.put(step, numbers)

    def _tell_evaluations(self) -> None:
        """What `evaluations.jsonl` has that was not there before; it is read since it is what the run has kept."""
        try:
            size = self._evaluations.stat().st_size
            lines = read_lines(self._evaluations) if size != self._size and self._first is not None else []
        except (OSError, LuffyError):
            return
        if self._first is not None:
            self._size = size
        for line in lines:
            key = (line.get("step", 0), line.get("set", ""))
            before = self._first != 1 and key[0] < (self._first or 0)  # an earlier start has told it
            if key not in self._told and not before:
                self._told.add(key)
                values = {name: value["value"] for name, value in line.items() if isinstance(value, dict)}
                self._tell(key[0], {f"{key[1]}/{name}": value for name, value in values.items()})


def _installed(name: str) -> bool:
    found = importlib.util.find_spec(name)
    if found is not None and found.origin is not None:  # none: a folder of that name, as wandb leaves them
        return True
    logger.warning(
        "tracker=%s: the package is not installed, so nothing goes there (%s). metrics.jsonl has everything.",
        name,
        INSTALL[name],
    )
    return False


class _Feed:
    """The records on their way to one tracker, and the thread that hands them over."""

    def __init__(self, name: str, config: Config, start: Start) -> None:
        self._name, self._config, self._start = name, config, start
        self._records: Queue[tuple[int, Numbers] | None] = Queue(WAITING)
        self._thread: Thread | None = None
        self._given_up = False
        self._lock = Lock()

    def put(self, step: int, values: Numbers) -> None:
        """Hand over without waiting."""
        if self._given_up:
            return
        if self._thread is None:  # a daemon, so that a tracker that hangs does not keep the program from ending
            self._thread = Thread(target=self._work, args=(step,), name=f"tracker-{self._name}", daemon=True)
            self._thread.start()
        try:
            self._records.put_nowait((step, values))
        except Full:
            self._give_up(f"is {WAITING} records behind")

    def end(self) -> None:
        """Nothing comes any more."""
        try:
            self._records.put_nowait(None)
        except Full:
            self._give_up(f"is {WAITING} records behind")

    def wait(self, until: float) -> None:
        """For the tracker to have everything. until: the time (`time.monotonic`) at which it is given up."""
        if self._thread is None or self._given_up:
            return
        self._thread.join(max(0.0, until - time.monotonic()))
        if self._thread.is_alive():
            self._give_up("does not answer")

    def _work(self, first_step: int) -> None:
        try:
            tracker = self._start(self._name, self._config, first_step)
            while not self._given_up:
                try:
                    record = self._records.get(timeout=1.0)
                except Empty:  # look again whether it has been given up
                    continue
                if record is None:
                    tracker.finish()
                    return
                tracker.log(_named_for(self._name, record[1]), step=record[0])
        except BaseException as error:  # packages raise what they like, SystemExit included
            self._give_up(f"failed ({type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]})")

    def _give_up(self, why: str) -> None:
        with self._lock:  # the run and the thread may both come to this
            if not self._given_up:
                logger.warning(
                    "tracker=%s %s; nothing goes there from here on. The run goes on, metrics.jsonl has everything.",
                    self._name,
                    without_secrets(why),
                )
                self._given_up = True


def _named_for(tracker: str, values: Numbers) -> Numbers:
    """MLflow takes no `@` in a name."""
    return {name.replace("@", "_at_"): value for name, value in values.items()} if tracker == "mlflow" else values
