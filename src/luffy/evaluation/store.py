"""The samples of an evaluation on disk, so that a killed one goes on and what a model said can be read later.

    OUTPUT/MODEL/settings.json         what the samples depend on
    OUTPUT/MODEL/BENCHMARK.parquet     a row a sample
    OUTPUT/MODEL/BENCHMARK.parts/      the same while the evaluation is running, a file a chunk of problems

A file is there whole or not at all. Samples made under other settings are never mixed in: they are refused.
"""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luffy.errors import RunError
from luffy.evaluation.metrics import Record
from luffy.files import write_whole

INSTALL = "pip install 'luffy-rl[data]'"
SAMPLE_KEYS = ("text", "correct", "finished", "tokens", "extracted", "failure")


def model_folder(output: Path, model: str) -> Path:
    """The folder of a model's samples: `runs/mine/model` becomes `runs-mine-model`."""
    return output / (re.sub(r"[^A-Za-z0-9._-]+", "-", model.strip("/.")).strip("-") or "model")


class SampleStore:
    """The samples of one model on one benchmark."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        """name: of the benchmark. settings: what its samples depend on; those of what is there must be the same.

        Raises RunError naming the keys that differ, and where Parquet files cannot be written.
        """
        _parquet()
        stem = name.replace("/", "-")
        self.whole, self.parts = folder / f"{stem}.parquet", folder / f"{stem}.parts"
        self.settings_path = folder / f"{stem}.json"
        self._check(settings)

    def _check(self, settings: dict[str, Any]) -> None:
        settings = json.loads(json.dumps(settings))
        if not self.settings_path.exists():
            write_whole(self.settings_path, (json.dumps(settings, indent=2) + "\n").encode())
            return
        try:
            known = json.loads(self.settings_path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError(
                f"{self.settings_path}: cannot be read ({error}). Delete the folder to start anew."
            ) from None
        differing = [key for key in settings.keys() | known.keys() if settings.get(key) != known.get(key)]
        if differing:
            shown = ", ".join(
                f"{key}: {_short(known.get(key))} there, {_short(settings.get(key))} now" for key in sorted(differing)
            )
            raise RunError(
                f"{self.settings_path.parent} holds samples made under other settings ({shown}). Choose another "
                f"--output or delete {self.whole.name} and {self.settings_path.name} there."
            )

    def read(self) -> list[Record] | None:
        """All records, if the benchmark is finished."""
        return _read(self.whole) if self.whole.exists() else None

    def read_part(self, start: int) -> list[Record] | None:
        """The records of the chunk that begins with problem `start`, if they are there."""
        path = self._part(start)
        return _read(path) if path.exists() else None

    def write_part(self, start: int, records: Sequence[Record]) -> None:
        """Keep a chunk."""
        self.parts.mkdir(parents=True, exist_ok=True)
        _write(self._part(start), records)

    def finish(self, records: Sequence[Record]) -> None:
        """Keep everything in one file; the parts go."""
        _write(self.whole, records)
        shutil.rmtree(self.parts, ignore_errors=True)

    def _part(self, start: int) -> Path:
        return self.parts / f"{start:06d}.parquet"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _parquet() -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise RunError(f"keeping samples needs pyarrow: {INSTALL}. To keep none: --discard") from None
    return parquet


def _write(path: Path, records: Sequence[Record]) -> None:
    import pyarrow as arrow

    rows = [
        {
            "id": record["id"],
            "prompt": json.dumps(record["prompt"], ensure_ascii=False),
            "answer": record["answer"],
            "sample": number,
            **{key: sample[key] for key in SAMPLE_KEYS},
        }
        for record in records
        for number, sample in enumerate(record["samples"])
    ]
    types = {"sample": arrow.int32(), "tokens": arrow.int32(), "correct": arrow.bool_(), "finished": arrow.bool_()}
    names = ("id", "prompt", "answer", "sample", *SAMPLE_KEYS)
    schema = arrow.schema([(name, types.get(name, arrow.string())) for name in names])
    sink = arrow.BufferOutputStream()
    _parquet().write_table(arrow.Table.from_pylist([_encodable(row) for row in rows], schema), sink, compression="zstd")
    write_whole(path, sink.getvalue().to_pybytes())


def _encodable(row: dict[str, Any]) -> dict[str, Any]:
    """The row without halves of surrogate pairs, which a tokenizer may leave and no file can hold."""
    texts = {key: value.encode("utf-8", "replace").decode() for key, value in row.items() if isinstance(value, str)}
    return row | texts


def _read(path: Path) -> list[Record]:
    import pyarrow as arrow

    try:
        rows = _parquet().read_table(path).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise RunError(f"{path}: cannot be read ({error}). Delete it to have it made anew.") from None
    records = []
    for (name, prompt, answer), group in itertools.groupby(rows, lambda row: (row["id"], row["prompt"], row["answer"])):
        samples = [{key: row[key] for key in SAMPLE_KEYS} for row in group]
        records.append({"id": name, "prompt": json.loads(prompt), "answer": answer, "samples": samples})
    return records
