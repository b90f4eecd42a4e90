"""Files that a reader never sees half of, and lines of JSON.

Whatever is written goes beside its place first, is flushed to the disk, and is renamed; then the folder it stands in is
flushed too, since a rename that only memory knows of is lost with the power. A full disk or a folder that may not be
written is a RunError that names the file.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from luffy.errors import RunError


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file; none where it is missing. A last line that is still being written is left out.

    Raises RunError naming file and line where another line is not a JSON object.
    """
    try:
        *whole, rest = path.read_text(encoding="utf-8").split("\n")  # not splitlines: JSON text may hold U+2028
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise RunError(f"{path}: cannot be read as UTF-8 text ({error}).") from None
    objects = [parse_object(line, f"{path}, line {number}") for number, line in enumerate(whole, 1) if line.strip()]
    try:
        last = parse_json(rest) if rest.strip() else None
    except ValueError:
        last = None
    return [*objects, last] if isinstance(last, dict) else objects


def parse_json(text: str | bytes) -> Any:
    """As `json.loads`, of text that may come from anywhere: what is nested too deeply is a ValueError, too."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object that `text` is. Raises RunError naming `where` it stands if it is none."""
    try:
        value = parse_json(text)
    except ValueError as error:
        raise RunError(f"{where}: not valid JSON ({error}).") from None
    if not isinstance(value, dict):
        raise RunError(f"{where}: expected a JSON object, got {type(value).__name__}.")
    return value


@contextmanager
def taken_as_written(what: Path | str) -> Iterator[None]:
    """Within the block, what was read has to be as a run writes it: other keys or types are a RunError naming `what`.

    The first error stays its cause, for whoever looks for a fault in the program instead.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise RunError(f"{what}: holds what a run does not write there ({type(error).__name__}: {error}).") from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says when `path` cannot be written into a RunError."""
    try:
        yield
    except Exception as error:  # safetensors reports a full disk by an error of its own
        trouble = str(error)
        if not isinstance(error, OSError) and "No space left" not in trouble and "I/O error" not in trouble:
            raise
        raise RunError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or trouble}).") from None


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Add one JSON line; `flush` brings it to the disk. Raises RunError when it cannot be written."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, from memory to the disk; one that is missing is passed over."""
    with writing(path):
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(handle)
        except OSError as error:
            if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems flush no folders
                raise
        finally:
            os.close(handle)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it; one that is missing is passed over. Raises RunError."""
    with writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Write a JSON-lines file in one go. Raises RunError when it cannot be written."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_whole(path, text.encode(errors="backslashreplace"))  # half a surrogate pair stays the escape that it was


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write beside, flush to disk, rename; folders are made. Returns the path.

    Raises RunError when it cannot be written; what was there is then untouched.
    """
    beside = path.with_name(path.name + ".part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            with suppress(OSError):  # a disk that has become read-only does not let us
                beside.unlink(missing_ok=True)
            raise
        flush(path.parent)
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[TextIO]:
    """A file to write text to, little by little, which takes its place only when the block ends without an error.

    Raises RunError when it cannot be written; what was there is then untouched.
    """
    beside = path.with_name(path.name + ".part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with beside.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
            flush(path.parent)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_folder_whole(path: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write into a folder beside, flush its files and folders, then put it in the place of `path`.

    Raises RunError when it cannot be written; what was there is then untouched.
    """
    with writing(path):
        try:
            fill(begin_folder(path))
            put_folder(path)
        except BaseException:
            abandon_folder(path)
            raise


def begin_folder(path: Path) -> Path:
    """An empty folder beside `path`, which `put_folder` puts in its place when it is filled. Raises RunError."""
    beside, _ = _neighbours(path)
    with writing(path):
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    return beside


def put_folder(path: Path) -> None:
    """Flush what `begin_folder` gave, with all in it, and put it in the place of `path`. Raises RunError."""
    beside, before = _neighbours(path)
    with writing(path):
        for one in (*beside.rglob("*"), beside):
            flush(one)
        if path.exists():  # a folder cannot be renamed onto one that is not empty
            shutil.rmtree(before, ignore_errors=True)
            path.rename(before)
        beside.rename(path)
        flush(path.parent)
        shutil.rmtree(before, ignore_errors=True)


def abandon_folder(path: Path) -> None:
    """Remove what `begin_folder` gave; what was in the place of `path` is there again."""
    beside, before = _neighbours(path)
    if before.exists() and not path.exists():
        before.rename(path)
    shutil.rmtree(beside, ignore_errors=True)


def _neighbours(path: Path) -> tuple[Path, Path]:
    """Where a folder is written before it is `path`, and where the one before it waits until then."""
    return path.with_name(path.name + ".part"), path.with_name(path.name + ".before")
