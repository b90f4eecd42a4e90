"""Two trainers on the same work, taking turns step by step, so that both see the same machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

from workload import Work

Steps = list[dict[str, float]]


class Contestant:
    """A trainer in another process."""

    def __init__(self, side: str, work: Work) -> None:
        """side: ours or trl."""
        self.side = side
        program = Path(__file__).with_name("contestant.py")
        self._errors: IO[bytes] = open(f"/tmp/{side}.log", "wb")
        self._process = subprocess.Popen(
            [sys.executable, str(program), side, work.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )

    def step(self) -> dict[str, float]:
        """Let it take one step."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(self.side)
        return dict(json.loads(line))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
