"""The worker process of a `VerifierPool`: holds one verifier and grades one completion at a time."""

from __future__ import annotations

import contextlib
import math
import signal

from luffy.reward.verifiers import RewardFunction, Verdict, Verifier, grade, resolve_verifier, verify_math

ORPHAN_SECONDS = 10  # beyond its deadline, after which a worker whose parent was killed ends by itself

_verifier: Verifier
_alarm_seconds = 0


def start_worker(kind: str | RewardFunction, deadline: float, memory: int | None) -> None:
    """Load the verifier and set the limits of this process. Never raises: what went wrong becomes each verdict."""
    global _verifier, _alarm_seconds
    _alarm_seconds = math.ceil(deadline) + ORPHAN_SECONDS
    # End at once when told to: the default handler of the pool runs only once the verifier returns to Python.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        _verifier = resolve_verifier(kind)
        if _verifier is verify_math:
            grade(_verifier, "#### 1/2", "0.5")  # imports and builds the parser before the first deadline counts
        if memory is not None:
            _limit_memory(memory)
    except Exception as error:
        _verifier = _failing(error)


def grade_in_worker(completion_text: str, answer: str) -> Verdict:
    """Grade one completion by the verifier of this process."""
    # The pool's deadline comes first. This ends a hung worker whose parent was killed and cannot stop it.
    _alarm(_alarm_seconds)
    verdict = grade(_verifier, completion_text, answer)
    _alarm(0)
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


def _limit_memory(extra: int) -> None:
    """Let this process map `extra` bytes on top of what it has mapped; more raises MemoryError. Linux only."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        with open("/proc/self/statm", encoding="ascii") as statm:
            mapped = int(statm.read().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = mapped + extra if hard == resource.RLIM_INFINITY else min(mapped + extra, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
