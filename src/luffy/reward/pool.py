"""Verification in worker processes: nothing that a verifier does can stop or falsify the run.

Every completion is a task with a deadline of its own on a pebble pool, so a completion on which the verifier hangs,
crashes or exits costs one verdict (not correct, with a failure) and never those of its neighbours. Tasks are not
batched: a worker does some 10,000 a second, more than any verifier that needs one.

How a verifier gets into a worker:

    exact, number, choice              not at all: they take time linear in the text and run in this process
    math, reasoning_gym, python:...    by name, in a process started afresh, which does not import the main script
    an importable Python function      the same
    a lambda, a closure, a function    in a forked copy of this process, on Linux; elsewhere in this process, without
    of the main script or a notebook   deadline, which a warning says
"""

from __future__ import annotations

import contextlib
import functools
import logging
import multiprocessing
import multiprocessing.context
import pickle
import platform
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Self

from pebble import ProcessExpired, ProcessFuture, ProcessPool

from luffy.config import Config, completion_format
from luffy.errors import RunError
from luffy.formats import CompletionFormat
from luffy.reward.verifiers import OUT_OF_MEMORY, RewardFunction, Verdict, grade, resolve_verifier
from luffy.reward.worker import MEMORY_STATUS, Limits, grade_in_worker, ready, start_worker

logger = logging.getLogger(__name__)

PROCESS_FREE = ("exact", "number", "choice")  # kinds that need no deadline
WARM_UPS = {"math": ("#### 1/2", "0.5"), "reasoning_gym": ("4", '{"task": "chain_sum", "answer": "4", "metadata": {}}')}
STALL_SECONDS = 60.0  # without any verdict, beyond the deadline, after which the workers are started anew
CLOCK_JUMP_SECONDS = 0.5  # by which the time of day changed on its own; the deadlines of the pool go by it
MAX_RESTARTS = 3  # of the workers without a verdict in between
WORKER_MEMORY = 2 * 2**30  # bytes

Pair = tuple[str, str]  # text of a completion, reference answer


class VerifierPool:
    """Workers that verify completions, each with a deadline; a context manager.

    kind: as for `verify`. workers: processes; 0 verifies in this process, without a deadline. deadline: seconds for
    one verification; waiting for a worker and its start do not count. memory: bytes a worker may take on top of what
    it has after its start, None for no limit; Linux only. gate, threshold: as for `verify`. Raises ConfigError for an
    unknown kind.
    """

    def __init__(
        self,
        kind: str | RewardFunction,
        *,
        workers: int,
        deadline: float,
        memory: int | None = WORKER_MEMORY,
        gate: CompletionFormat | None = None,
        threshold: float = 1.0,
    ) -> None:
        resolve = functools.partial(resolve_verifier, kind, gate=gate, threshold=threshold)
        self._verifier = resolve()  # also with workers: a mistake shows here, not in every verdict
        self._context = _worker_context(kind) if workers > 0 and kind not in PROCESS_FREE else None
        self._workers = workers
        self._deadline = deadline
        warm_up = WARM_UPS.get(kind) if isinstance(kind, str) else None
        self._start = (resolve, _behind(gate, warm_up), Limits(deadline, memory))
        self._lock = threading.Lock()
        self._pool: ProcessPool | None = None
        self._closed = False
        self._verdicts = 0  # given by workers so far
        self._restarts = 0  # since the last verdict

    @classmethod
    def of(cls, config: Config, reward: RewardFunction | None = None) -> Self:
        """The pool that a configuration describes. reward: replaces the kind of verifier, not what is around it."""
        settings = config.reward
        return cls(
            reward or settings.kind,
            workers=settings.workers,
            deadline=settings.deadline,
            memory=None if settings.memory is None else round(settings.memory * 2**30),
            gate=completion_format(config) if settings.format == "closed_thought" else None,
            threshold=settings.threshold,
        )

    def __enter__(self) -> Self:
        if self._context is not None:
            with contextlib.suppress(RuntimeError):  # that none can be started is said where a verdict is asked for
                self._running_pool().schedule(ready)  # workers start while the caller goes on
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the workers; verdicts still pending are lost."""
        with self._lock:
            pool, self._pool, self._closed = self._pool, None, True
        if pool is not None:
            _stop(pool)

    def verify_all(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """The verdicts of (completion text, answer) pairs, in their order."""
        return self.submit(pairs).result()

    def submit(self, pairs: Sequence[Pair]) -> PendingVerdicts:
        """Start to verify, and return at once; without workers it is all done here, before returning."""
        if self._context is None:
            return PendingVerdicts(self, [grade(self._verifier, *pair) for pair in pairs])
        return PendingVerdicts(self, [_Task(self, pair) for pair in pairs])

    def _running_pool(self) -> ProcessPool:
        with self._lock:
            if self._closed:
                raise RunError("the verifier pool is closed.")
            if self._pool is None:
                self._pool = ProcessPool(
                    max_workers=self._workers,
                    initializer=start_worker,
                    initargs=self._start,
                    context=self._context,  # type: ignore[arg-type]
                )
            return self._pool

    def _restart(self, broken: ProcessPool, why: Exception) -> None:
        """Replace a pool that no longer works, unless that has been done. Raises RunError when that keeps happening."""
        with self._lock:
            if self._pool is not broken:
                return
            self._pool = None
            self._restarts += 1
            restarts = self._restarts
        _stop(broken)
        if restarts > MAX_RESTARTS:
            raise RunError(
                f"the verifier's workers ended {restarts} times without a verdict{_shown_reason(why)}. Is there "
                "enough memory for them, and space in the temporary folder (TMPDIR)? "
                "reward.workers=0 verifies without workers."
            )
        logger.warning("the verifier's workers ended unexpectedly and are started anew")

    def _count_verdict(self) -> None:
        self._verdicts += 1
        self._restarts = 0


class PendingVerdicts:
    """Verdicts that workers are finding out."""

    def __init__(self, pool: VerifierPool, items: Sequence[Verdict | _Task]) -> None:
        self._pool = pool
        self._items = items
        self._verdicts: list[Verdict] | None = None

    def result(self) -> list[Verdict]:
        """Wait for all verdicts, in the order of the pairs. Raises RunError when workers cannot be kept alive."""
        if self._verdicts is None:
            self._verdicts = [item if isinstance(item, Verdict) else item.verdict() for item in self._items]
        return self._verdicts


class _Task:
    """One pair on its way through the workers."""

    def __init__(self, owner: VerifierPool, pair: Pair) -> None:
        self._owner = owner
        self._pair = pair
        self._schedule()

    def _schedule(self) -> None:
        while True:
            self._pool = self._owner._running_pool()
            self._clock_offset = _clock_offset()
            try:
                self._future: ProcessFuture[Verdict] = self._pool.schedule(
                    grade_in_worker, args=self._pair, timeout=self._owner._deadline
                )
                return
            except RuntimeError as error:  # the pool broke since; pebble has no narrower error
                self._owner._restart(self._pool, error)

    def verdict(self) -> Verdict:
        """Wait for the verdict; where the pool itself breaks, submit the pair again."""
        while True:
            try:
                verdict = self._wait()
            except TimeoutError:
                if abs(_clock_offset() - self._clock_offset) > CLOCK_JUMP_SECONDS:  # or this machine slept
                    self._schedule()
                    continue
                verdict = Verdict(False, None, "timeout")
            except ProcessExpired as end:
                verdict = Verdict(False, None, OUT_OF_MEMORY if end.exitcode == MEMORY_STATUS else "crash")
            except (
                RuntimeError,
                CancelledError,
            ) as error:  # of the pool: a worker catches its own
                self._owner._restart(self._pool, error)
                self._schedule()
                continue
            except Exception as error:
                verdict = Verdict(False, None, f"error: {type(error).__name__}: {error}")
            self._owner._count_verdict()
            return verdict

    def _wait(self) -> Verdict:
        """The verdict of the worker. Raises RuntimeError when all workers stand still, or the owner was closed."""
        while True:
            if self._owner._closed:
                raise RuntimeError("closed")
            before = self._owner._verdicts
            try:
                return self._future.result(timeout=self._owner._deadline + STALL_SECONDS)
            except TimeoutError:
                if self._future.done():  # the deadline of the pair, not that of this wait
                    raise
            if self._owner._verdicts == before:
                raise RuntimeError("no worker gives verdicts")


def _shown_reason(error: Exception) -> str:
    """What the system said when a process could not be started, if that is what happened."""
    return f" ({error.__cause__})" if isinstance(error.__cause__, OSError) else ""


def _clock_offset() -> float:
    """Seconds between the time of day and the time that never jumps."""
    return time.time() - time.monotonic()


def _behind(gate: CompletionFormat | None, pair: Pair | None) -> Pair | None:
    """The pair, with its completion past the gate."""
    return pair if gate is None or pair is None else (gate.closing + pair[0], pair[1])


def _stop(pool: ProcessPool) -> None:
    pool.stop()  # type: ignore[no-untyped-call]
    pool.join()


def _worker_context(kind: str | RewardFunction) -> multiprocessing.context.BaseContext | None:
    """How workers are started, or None when this verifier cannot be given to another process."""
    if isinstance(kind, str) or _importable(kind):
        return _ready_made_context(kind)
    if platform.system() == "Linux":  # elsewhere a forked copy of a process with threads is not safe
        return _ForkContext()
    logger.warning(
        "the reward function %r cannot be imported by worker processes: it runs in this one, without a deadline. "
        "Define it in a module of its own to change that.",
        getattr(kind, "__name__", kind),
    )
    return None


def _importable(function: RewardFunction) -> bool:
    """Whether a fresh process gets this function by importing modules other than the main script."""
    try:
        return b"__main__" not in pickle.dumps(function)
    except Exception:  # whatever the parts of a callable raise when pickled
        return False


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let a new process inherit a mask against Ctrl-C, which it needs until it ignores the signal itself."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_hidden() -> Iterator[None]:
    """Let a new process not import the main script, which would load torch, or train again without a main guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _ready_made_context(kind: str | RewardFunction) -> multiprocessing.context.BaseContext:
    """Workers that are copies of a process which has imported what they need, where the system can do that.

    A worker that was stopped is then replaced in a few hundredths of a second; math-verify alone takes one to import.
    """
    if sys.platform == "win32":
        return _SpawnContext()
    context = _ForkServerContext()
    context.set_forkserver_preload(["luffy.reward.worker", *(["luffy.reward.math_ready"] if kind == "math" else [])])
    return context


class _SpawnProcess(multiprocessing.context.SpawnProcess):
    def start(self) -> None:
        with _interrupts_held(), _main_hidden():
            super().start()


class _SpawnContext(multiprocessing.context.SpawnContext):
    Process = _SpawnProcess


if sys.platform != "win32":

    class _ForkServerProcess(multiprocessing.context.ForkServerProcess):
        def start(self) -> None:
            with _interrupts_held(), _main_hidden():
                super().start()

    class _ForkServerContext(multiprocessing.context.ForkServerContext):
        Process = _ForkServerProcess

    class _ForkProcess(multiprocessing.context.ForkProcess):
        def start(self) -> None:
            with _interrupts_held():
                super().start()

    class _ForkContext(multiprocessing.context.ForkContext):
        Process = _ForkProcess
