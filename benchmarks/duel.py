"""Two trainers on the same work, taking turns step by step, so that both see the same machine at the same time."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from workload import Work

PROGRAM = Path(__file__).with_name("contestant.py")
SIDES = ("ours", "trl")
Steps = list[dict[str, float]]  # what each step took: `step`, its parts, `tokens` and `peak`


class ContestantError(RuntimeError):
    """A trainer ended before its time; the message is the last line it wrote."""


class Contestant:
    """A trainer in a process of its own; a context manager."""

    def __init__(self, side: str, work: Work) -> None:
        """side: ours or trl."""
        self.side, self.work = side, work
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed in __exit__
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), side, work.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def step(self) -> dict[str, float]:
        """Let it take a step. Raises ContestantError when it has failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failure() from None
        line = self._process.stdout.readline()
        if not line:
            raise self._failure()
        measured: dict[str, float] = json.loads(line)
        wanted = self.work.groups * sum(self.work.lengths)
        if measured["tokens"] != wanted:
            raise ContestantError(f"{self.side}: {measured['tokens']:.0f} tokens were generated, not {wanted}")
        return measured

    def _failure(self) -> ContestantError:
        self._process.wait()
        self._errors.seek(0)
        lines = [line.strip() for line in self._errors if line.strip()] or ["no word of why"]
        errors = [line for line in lines if "Error" in line.partition(":")[0]] or lines
        return ContestantError(f"{self.side}: {errors[-1][:200]}")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def has_trl() -> bool:
    """Whether TRL is installed."""
    return find_spec("trl") is not None


def duel(work: Work, steps: int, warm_up: int = 1) -> tuple[Steps, Steps]:
    """Steps of ours and of TRL, in turn; the first ones, which load and warm up, are left out."""
    with Contestant("ours", work) as ours, Contestant("trl", work) as trl:
        taken = []
        for number in range(warm_up + steps):
            taken.append((ours.step(), trl.step()))
            print(
                f"{work.shape} {number + 1}/{warm_up + steps}: ours {taken[-1][0]['step']:.2f} s, "
                f"TRL {taken[-1][1]['step']:.2f} s",
                file=sys.stderr,
            )
    return [one for one, _ in taken[warm_up:]], [other for _, other in taken[warm_up:]]


def alone(side: str, work: Work, steps: int, warm_up: int = 1) -> Steps:
    """Steps of one side, where both at once would not fit into the memory."""
    with Contestant(side, work) as contestant:
        return [contestant.step() for _ in range(warm_up + steps)][warm_up:]


def column(steps: Steps, name: str) -> list[Any]:
    """One measurement of every step."""
    return [step[name] for step in steps]
