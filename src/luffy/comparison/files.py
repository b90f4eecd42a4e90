"""Writing a result so that a reader never sees half of it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from luffy.errors import RunError


def write_whole(path: Path, content: bytes) -> Path:
    """Put a file in the place of `path`, whole or not at all; folders are made. Returns the path.

    Raises RunError saying why it cannot be written; what was there before is then untouched.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise RunError(f"{path}: cannot be written ({error.strerror}). What was there before is untouched.") from None
    return path
