"""Secrets that stand in the environment, kept out of what is printed and written.

A secret is the value of a variable whose name ends in TOKEN, KEY, SECRET or PASSWORD and that is long enough to be one.
"""

from __future__ import annotations

import os
import re

SECRET_NAME = re.compile(r"(TOKEN|KEY|SECRET|PASSWORD)$", re.IGNORECASE)
SHORTEST = 16  # characters; shorter values are words that may stand anywhere
MASK = "***"


def secrets() -> dict[str, str]:
    """The variables that hold a secret, and their values, the longest first."""
    found = {name: value.strip() for name, value in os.environ.items() if SECRET_NAME.search(name)}
    long_enough = {name: value for name, value in found.items() if len(value) >= SHORTEST}
    return dict(sorted(long_enough.items(), key=lambda item: -len(item[1])))


def without_secrets(text: str) -> str:
    """The text with a mask in the place of every secret of the environment."""
    for value in secrets().values():
        text = text.replace(value, MASK)
    return text
