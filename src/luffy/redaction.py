"""What must not be printed or written as it is: secrets of the environment, and characters that steer a terminal.

A secret is the value of a variable whose name ends in TOKEN, KEY, SECRET or PASSWORD and that is long enough to be one.
"""

from __future__ import annotations

import os
import re
import unicodedata

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


def printable(text: str, keep: str = "") -> str:
    """The text with control characters written out, so that data cannot steer the terminal. keep: these stay."""
    return "".join(
        character
        if character in keep or unicodedata.category(character)[0] != "C"
        else character.encode("unicode_escape").decode()
        for character in text
    )
