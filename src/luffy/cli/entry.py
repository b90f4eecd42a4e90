"""From the command line to a command, and from an error to a sentence and an exit status."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
from typing import NoReturn

from luffy.cli import data, evaluation, looking, training  # noqa: F401  registers the commands
from luffy.cli.console import configure_logging, messages, plain
from luffy.cli.root import STOPPED, CommandInterruptedError, application
from luffy.errors import ConfigError, LuffyError
from luffy.redaction import without_secrets


def main() -> None:
    """Run the command line; a user's mistake is a sentence on stderr, never a traceback."""
    try:
        _run()
    except SystemExit as ended:
        if any(thread.name.startswith("tracker-") for thread in threading.enumerate()):
            _leave(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise


def _leave(status: int) -> NoReturn:
    """End at once: a tracker that was given up still hangs, and its package would wait for it at exit, for minutes.

    The run is over and has written and closed everything; its lock ends with the process.
    """
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads any more
            stream.flush()
    os._exit(status)


def _run() -> None:
    configure_logging()
    if not messages.is_terminal:
        os.environ.setdefault("TQDM_DISABLE", "1")  # the libraries' own bars would fill a log with control characters
    try:
        application(prog_name="luffy")
    except LuffyError as error:
        if not _speaks():
            sys.exit(2 if isinstance(error, ConfigError) else 1)
        for line in without_secrets(str(error)).splitlines():
            messages.print(f"[bold red]error:[/] {plain(line)}", soft_wrap=True, highlight=False)
        sys.exit(2 if isinstance(error, ConfigError) else 1)
    except (KeyboardInterrupt, CommandInterruptedError):
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # another Ctrl-C ends it at once, without a traceback
        if _speaks():
            messages.print("interrupted; the same command goes on from the last checkpoint.")
        sys.exit(STOPPED)
    except Exception:
        _speaks()  # the traceback is what is said; the processes that lose this one need not say so
        raise


def _speaks() -> bool:
    """Whether this process is to say why it fails; of several that train together, the first to fail is."""
    if "LOCAL_RANK" not in os.environ:
        return True
    from luffy.training.world import first_to_fail

    return first_to_fail()
