"""Start a run in several processes of this machine, by torch's elastic agent, the one behind torchrun and accelerate.

The agent is used as a library and not through `accelerate launch`, which on a machine without GPU starts processes by
MPI alone, and ends a failed run with a traceback of its own where the run has already said what is wrong.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from luffy.errors import RunError
from luffy.planning.machine import usable_cores


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `luffy ARGUMENTS` in that many processes, connected at a free port. Returns the exit status.

    What a process says itself is not repeated. Raises RunError where one was killed without a word.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // processes)))
    settings = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # Ctrl-C and SIGTERM are handed on below: the processes finish their step
    )
    try:
        with _handing_on_signals():
            elastic_launch(settings, sys.executable)("-m", "luffy", *arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return int(failure.exitcode)
        number = signal.Signals(-failure.exitcode)
        raise RunError(
            f"process {rank} of {processes} was killed ({number.name}), so all of them ended. "
            f"{'Was there too little memory? ' if number is signal.SIGKILL else ''}"
            "The same command goes on from the last checkpoint."
        ) from None
    return 0


@contextmanager
def _handing_on_signals() -> Iterator[None]:
    """Send SIGINT and SIGTERM on to the processes, which are in sessions of their own, and go on waiting for them."""
    import psutil

    def hand_on(number: int, _: FrameType | None) -> None:
        for child in psutil.Process().children():
            child.send_signal(number)

    before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
