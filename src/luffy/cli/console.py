"""Where commands print: results to stdout, messages to stderr; what is printed alike everywhere."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from rich.console import Console
from rich.logging import RichHandler

from luffy.redaction import printable, without_secrets

messages = Console(stderr=True)
results = Console()


def counted(count: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def percent(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f} %"


def plain(text: str) -> str:
    """Text of ours or the user's that must be taken neither for console markup nor for commands to the terminal."""
    from rich.markup import escape

    return escape(printable(text, keep="\n"))


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def configure_logging() -> None:
    """Messages of this program and of libraries go to stderr, without secrets."""
    handler = RichHandler(console=messages, show_time=False, show_path=False, markup=False)
    handler.addFilter(_mask_secrets)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("luffy").setLevel(logging.INFO)


def _mask_secrets(record: logging.LogRecord) -> bool:
    """Messages of libraries, too, may hold a key that they were given, or text of a file."""
    record.msg, record.args = printable(without_secrets(record.getMessage()), keep="\n"), None
    return True
