"""The rows of a file, a saved data set or a data set on the hub, one after the other, whatever the format.

    .jsonl and others   a JSON object a line            rows are lines, from 1
    .json               a list of objects               rows are elements, from 1
    .csv  .tsv          a header, then a row a problem  rows as a spreadsheet counts them: the header is row 1
    .parquet            columns                         rows from 1
    a folder            saved by `datasets`             rows from 1
    OWNER/NAME          a data set on the hub           rows from 1

A row that cannot be read is a RowError in its place; a source that cannot be read at all raises DataError.
"""

from __future__ import annotations

import csv
import difflib
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

from luffy.config import MINIATURE
from luffy.data.rows import RowError, parse_line, without_repetition
from luffy.errors import DataError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
FOREIGN_STARTS = {  # first bytes of files that are often taken for text
    b"\xff\xfe": "UTF-16 text; save it as UTF-8",
    b"\xfe\xff": "UTF-16 text; save it as UTF-8",
    b"\x1f\x8b": "a gzip file; unpack it",
    b"PK\x03\x04": "a zip file (an Excel workbook is one); unpack it, or save the sheet as CSV",
    b"PAR1": "a Parquet file; give it a name that ends in .parquet",
}
EXPECTED = {".json": "a JSON list of objects", ".csv": "CSV with a header", ".tsv": "CSV with a header"}
FORMATS = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
ROWS_AT_ONCE = 256
LONGEST_FIELD = 2**27  # characters of a CSV field; Python's own limit of 131,072 is shorter than some traces
INSTALL = "pip install 'luffy-rl[data]'"

RawRow = tuple[int, Any]  # row number, and an object or a RowError
OnHeader = Callable[[Sequence[str]], None]  # is told the columns, where a source has them, before the first row


def check_data_name(name: str) -> None:
    """Refuse a name under which there is no file or folder and no data set on the hub can be; reads nothing.

    Raises DataError with the nearest file.
    """
    if not is_hub_name(name) and not Path(name).exists():
        raise DataError(f"{name}: there is no such file.{_nearest_file(Path(name))}")


class RowSource:
    """The rows of one source, and how far they have been read."""

    def __init__(self, name: str | Path, *, subset: str | None = None, split: str = "train") -> None:
        """name: a file, a folder saved by `datasets`, or a name on the hub, of which subset and split are taken."""
        self.name, self.path = str(name), Path(name)
        self.subset, self.split = subset, split
        self.total = 0  # bytes or rows there are, where known
        self.read = 0  # bytes or rows that were read
        self._digest = hashlib.sha256()

    @property
    def share(self) -> float | None:
        """The part that has been read, 0 to 1; None where it is not known."""
        return min(1.0, self.read / self.total) if self.total else None

    @property
    def digest(self) -> str:
        """SHA-256 of the file's bytes, or of the rows where they do not come from one file; complete after reading."""
        return self._digest.hexdigest()

    def rows(self, on_header: OnHeader) -> Iterator[RawRow]:
        """The rows. Raises DataError when the source cannot be read."""
        try:
            if self.path.is_dir():
                yield from self._saved_rows(on_header)
            elif is_hub_name(self.name):
                yield from self._hub_rows(on_header)
            elif self.path.suffix.lower() == ".parquet":
                yield from self._parquet_rows(on_header)
            elif self.path.suffix.lower() in (".csv", ".tsv"):
                yield from self._csv_rows(on_header)
            elif self.path.suffix.lower() == ".json" and not self._is_json_lines():
                yield from self._json_rows()
            else:
                yield from self._json_lines()
        except FileNotFoundError:
            raise DataError(f"{self.name}: there is no such file.{_nearest_file(self.path)}") from None
        except DataError:
            raise
        except (OSError, ValueError) as error:  # no permission, a name with a zero byte, a failing disk
            raise DataError(f"{self.name}: cannot be read ({error}).") from None

    # Text

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """The lines of the file, with numbers from 1, without a byte-order mark."""
        with self.path.open("rb") as file:
            self.total = self.path.stat().st_size
            for number, line in enumerate(file, start=1):
                self.read += len(line)
                self._digest.update(line)
                if number == 1:
                    self._refuse_foreign(line)
                    line = line.removeprefix(BYTE_ORDER_MARK)
                yield number, line

    def _refuse_foreign(self, start: bytes) -> None:
        expected = EXPECTED.get(self.path.suffix.lower(), "JSONL: a JSON object a line")
        for first_bytes, what in FOREIGN_STARTS.items():
            if start.startswith(first_bytes):
                raise DataError(f"{self.name}: is {what} (expected {expected}).")

    def _json_lines(self) -> Iterator[RawRow]:
        for number, line in self._lines():
            if line.strip():
                yield number, _or_error(parse_line, line)

    def _is_json_lines(self) -> bool:
        """Whether a .json file holds an object a line, as many do."""
        with self.path.open("rb") as file:
            first, second = file.readline().removeprefix(BYTE_ORDER_MARK).strip(), file.readline().strip()
        if not first.startswith(b"{"):
            return False
        try:
            return "prompt" in (row := json.loads(first)) or (bool(second) and isinstance(row, dict))
        except (ValueError, RecursionError):
            return False

    def _json_rows(self) -> Iterator[RawRow]:
        content = b"".join(line for _, line in self._lines())
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise DataError(
                f"{self.name}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; save the file as UTF-8."
            ) from None
        if not text.strip():
            return
        try:
            yield from _elements(text)
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.name}, line {error.lineno}: not valid JSON: {error.msg} (column {error.colno}); "
                "expected a list of objects, or an object a line in a file named .jsonl."
            ) from None
        except RecursionError:
            raise DataError(f"{self.name}: not usable JSON: nested too deeply.") from None

    def _csv_rows(self, on_header: OnHeader) -> Iterator[RawRow]:
        csv.field_size_limit(LONGEST_FIELD)
        lines = (line.decode("utf-8", "surrogateescape") for _, line in self._lines())
        first = next((line for line in lines if line.strip()), None)
        if first is None:
            return
        reader = csv.reader(_chain(first, lines), delimiter=_delimiter(self.path, first), strict=True)
        number = 0
        try:
            header = [name.strip() for name in next(reader)]
            self._check_header(header)
            on_header(header)
            for number, fields in enumerate(reader, start=2):
                if any(field.strip() for field in fields):
                    yield number, _or_error(_csv_row, header, fields)
        except csv.Error as error:
            raise DataError(
                f"{self.name}, row {number + 1}: not valid CSV ({error}). A field with a comma, a quote or a line "
                'break needs "quotes" around it, and a quote inside is written twice.'
            ) from None

    def _check_header(self, header: Sequence[str]) -> None:
        repeated = next((name for name in header if header.count(name) > 1), None)
        if repeated is not None:
            raise DataError(f"{self.name}: column {repeated!r} is there twice; the first row must name the columns.")
        if any(_foreign_byte(name) for name in header):
            raise DataError(f"{self.name}, row 1: is not UTF-8; save the file as UTF-8.")

    # Columns

    def _parquet_rows(self, on_header: OnHeader) -> Iterator[RawRow]:
        import pyarrow as arrow
        import pyarrow.parquet as parquet

        with self.path.open("rb") as file:
            if not file.read(1):
                return
            file.seek(0)
            while block := file.read(2**20):
                self._digest.update(block)
        try:
            with parquet.ParquetFile(self.path) as table:
                self.total = table.metadata.num_rows
                on_header(table.schema_arrow.names)
                for batch in table.iter_batches(batch_size=ROWS_AT_ONCE):
                    for values in batch.to_pylist():
                        self.read += 1
                        yield self.read, plain(values)
        except arrow.ArrowException as error:
            first_line = (str(error).splitlines() or [""])[0]
            raise DataError(f"{self.name}: is not a readable Parquet file ({first_line}).") from None

    def _saved_rows(self, on_header: OnHeader) -> Iterator[RawRow]:
        if not any((self.path / name).exists() for name in ("state.json", "dataset_dict.json")):
            found = sorted(str(file) for file in self.path.iterdir() if file.suffix in FORMATS)
            inside = f" It holds {', '.join(found[:3])}{' and others' if len(found) > 3 else ''}." if found else ""
            raise DataError(f"{self.name}: is a folder, expected a file or a folder saved by `datasets`.{inside}")
        saved = _datasets(self.name).load_from_disk(str(self.path))
        if isinstance(saved, dict):
            if self.split not in saved:
                raise DataError(
                    f"{self.name}: has no split {self.split!r}, only {', '.join(saved)}. "
                    f"To take another: data.split={next(iter(saved), 'NAME')}"
                )
            saved = saved[self.split]
        yield from self._dataset_rows(saved, on_header)

    def _hub_rows(self, on_header: OnHeader) -> Iterator[RawRow]:
        library = _datasets(self.name)
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # the error below says what its warnings say
        try:
            loaded = library.load_dataset(self.name, self.subset, split=self.split)
        except Exception as error:  # of the hub, the network, the file system, or an unknown subset or split
            first_line = (str(error).splitlines() or [""])[0]
            raise DataError(
                f"{self.name}: there is no such file, and the data set cannot be loaded from the hub "
                f"({type(error).__name__}: {first_line}). Check the name, data.split={self.split}, data.subset where "
                "the data set has several, and whether this machine reaches the hub."
            ) from None
        yield from self._dataset_rows(loaded, on_header)

    def _dataset_rows(self, dataset: Any, on_header: OnHeader) -> Iterator[RawRow]:
        self.total = len(dataset)
        on_header(dataset.column_names)
        for values in dataset.with_format(None):
            self.read += 1
            row = plain(values)
            self._digest.update(json.dumps(row, default=str, sort_keys=True).encode("utf-8", "replace"))
            yield self.read, row


def is_hub_name(name: str) -> bool:
    """Whether a name is that of a data set on the hub: OWNER/NAME, and neither a file nor named like one."""
    path = Path(name)
    return bool(HUB_NAME.fullmatch(name)) and path.suffix.lower() not in FORMATS and not path.parent.exists()


def plain(value: Any) -> Any:
    """The value with lists, objects, numbers and texts of Python's own, whatever numpy or Arrow had made of them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, str | int | float | bytes | None):
        return value
    return plain(value.tolist()) if hasattr(value, "tolist") else value  # arrays and numbers of numpy


def _or_error(parse: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return parse(*arguments)
    except RowError as error:
        content = arguments[-1]
        error.content = content.decode("utf-8", "replace").rstrip() if isinstance(content, bytes) else content
        return error


def _elements(text: str) -> Iterator[RawRow]:
    """The elements of the list in a JSON text, or of the only list in its object."""
    decoder = json.JSONDecoder(object_pairs_hook=without_repetition)
    position = _start_of_list(text)
    number = 0
    while True:
        position = _skip_space(text, position)
        if text.startswith("]", position):
            return
        number += 1
        try:
            value, position = decoder.raw_decode(text, position)
        except RowError as error:
            _, position = json.JSONDecoder().raw_decode(text, position)
            value = error
        yield number, value
        position = _skip_space(text, position)
        if text.startswith(",", position):
            position += 1
        elif not text.startswith("]", position):
            raise json.JSONDecodeError("expected ',' or ']'", text, position)


def _start_of_list(text: str) -> int:
    start = _skip_space(text, 0)
    if text.startswith("{", start):
        tree = json.loads(text)
        lists = [key for key, value in tree.items() if isinstance(value, list)]
        if len(lists) != 1:
            raise json.JSONDecodeError("an object without a single list in it", text, start)
        inside = re.compile(re.escape(json.dumps(lists[0], ensure_ascii=False)) + r"\s*:\s*\[").search(text)
        if inside is None:
            raise json.JSONDecodeError("an object", text, start)
        return inside.end()
    if not text.startswith("[", start):
        raise json.JSONDecodeError("not a list", text, start)
    return start + 1


def _skip_space(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n":
        position += 1
    return position


def _chain(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(path: Path, header: str) -> str:
    """A tab for .tsv; else the most frequent of comma, semicolon (spreadsheets of many countries) and tab."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t", key=re.sub(r'"[^"]*"', "", header).count)


def _csv_row(header: Sequence[str], fields: Sequence[str]) -> dict[str, Any]:
    if len(fields) != len(header):
        raise RowError(
            f"has {len(fields)} fields, the header has {len(header)}; a field with a comma or a line break needs quotes"
        )
    for name, field in zip(header, fields, strict=True):
        byte = _foreign_byte(field)
        if byte:
            raise RowError(f"column {name!r}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8")
    return {name: _csv_value(name, field) for name, field in zip(header, fields, strict=True)}


def _csv_value(name: str, field: str) -> Any:
    """A field: nothing where it is blank, JSON where it holds messages or a list of traces, else its text."""
    if not field.strip():
        return None
    looks_like_list = field.lstrip().startswith(('["', "[{", "[ "))
    if looks_like_list:
        try:
            value = json.loads(field)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, list) and all(isinstance(item, str | dict) for item in value):
            return value
    return [field] if name == "traces" else field


def _foreign_byte(text: str) -> int:
    """The first byte that was not UTF-8, or 0."""
    return next((ord(character) - 0xDC00 for character in text if 0xDC80 <= ord(character) <= 0xDCFF), 0)


def _datasets(name: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise DataError(f"{name}: a saved data set or one on the hub needs the package `datasets`: {INSTALL}") from None
    return datasets


def _nearest_file(path: Path) -> str:
    try:
        names = [file.name for file in path.parent.iterdir() if file.is_file()]
    except OSError:
        return f" There is no folder {str(path.parent)!r} either."
    close = difflib.get_close_matches(path.name, [*names, MINIATURE], n=1, cutoff=0.5)
    if not close:
        return ""
    return f" Did you mean {(MINIATURE if close[0] not in names else str(path.parent / close[0]))!r}?"
