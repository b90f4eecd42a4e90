"""The worker process of a `VerifierPool`: holds one verifier and grades one completion at a time."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from luffy.reward.verifiers import OUT_OF_MEMORY, Verdict, Verifier, grade

ORPHAN_SECONDS = 10  # beyond its deadline, after which a worker whose parent was killed ends by itself
MEMORY_STATUS = 83  # exit status of a worker that came to its memory limit
NEAR_LIMIT = 64 * 2**20  # bytes below the limit: a peak as high as this means that an allocation was refused


@dataclass(frozen=True, slots=True)
class Limits:
    """What one verification may take."""

    deadline: float  # seconds
    memory: int | None  # bytes on top of what the process has after its start; None: no limit


_verifier: Verifier
_alarm_seconds = 0
_memory_limit: int | None = None  # bytes of address space


def start_worker(resolve: Callable[[], Verifier], warm_up: tuple[str, str] | None, limits: Limits) -> None:
    """Load the verifier and set the limits of this process. Never raises: what went wrong becomes each verdict.

    warm_up: a (completion text, answer) that is graded before the first deadline counts.
    """
    global _verifier, _alarm_seconds, _memory_limit
    _alarm_seconds = math.ceil(limits.deadline) + ORPHAN_SECONDS
    # End at once when told to: the default handler of the pool runs only once the verifier returns to Python.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _verifier = resolve()
        if warm_up is not None:
            grade(_verifier, *warm_up)
        if limits.memory is not None:
            _memory_limit = _limit_memory(limits.memory)
    except Exception as error:
        _verifier = _failing(error)


def grade_in_worker(completion_text: str, answer: str) -> Verdict:
    """Grade one completion by the verifier of this process; a process that came to its memory limit ends."""
    # The pool's deadline comes first. This ends a hung worker whose parent was killed and cannot stop it.
    _alarm(_alarm_seconds)
    verdict = grade(_verifier, completion_text, answer)
    _alarm(0)
    # Libraries catch MemoryError too and go on with a wrong result, and caches would keep this process at its limit.
    if verdict.failure == OUT_OF_MEMORY or _came_to_limit():
        os._exit(MEMORY_STATUS)
    return verdict


def ready() -> bool:
    """Answer that a worker has started."""
    return True


def _failing(error: Exception) -> Verifier:
    def verifier(completion_text: str, answer: str) -> Verdict:  # noqa: ARG001 (signature of a verifier)
        raise error

    return verifier


def _alarm(seconds: int) -> None:
    if hasattr(signal, "alarm"):  # not on Windows
        signal.alarm(seconds)


def _limit_memory(extra: int) -> int | None:
    """Let this process map `extra` bytes on top of what it has mapped; more raises MemoryError. Linux only.

    Returns the limit in bytes, or None where there is none.
    """
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = mapped + extra if hard == resource.RLIM_INFINITY else min(mapped + extra, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    except (ImportError, OSError, ValueError):
        return None
    return limit


def _came_to_limit() -> bool:
    """Whether the address space of this process has ever been as large as its limit allows."""
    if _memory_limit is None:
        return False
    with open("/proc/self/status", encoding="ascii", errors="replace") as status:
        peak = next((line for line in status if line.startswith("VmPeak:")), None)
    return peak is not None and int(peak.split()[1]) * 1024 > _memory_limit - NEAR_LIMIT
