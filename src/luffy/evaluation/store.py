"""The samples of an evaluation on disk, so that a killed one goes on and what a model said can be read later.

    OUTPUT/MODEL/BENCHMARK-DIGEST.parquet     a row a sample
    OUTPUT/MODEL/BENCHMARK-DIGEST.json        what they depend on: weights, problems, sampling, verifier
    OUTPUT/MODEL/BENCHMARK-DIGEST.parts/      the same while the evaluation is running, a file a chunk of problems

A file is there whole or not at all. Samples made under other settings have other names and are never mixed in.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet

from luffy.errors import RunError
from luffy.evaluation.metrics import Record
from luffy.files import write_whole

SAMPLE_KEYS = ("text", "correct", "finished", "tokens", "extracted", "failure")


def model_folder(output: Path, model: str) -> Path:
    """The folder of a model's samples: `runs/mine/model` becomes `runs-mine-model`."""
    return output / (re.sub(r"[^A-Za-z0-9._-]+", "-", model.strip("/.")).strip("-") or "model")


class SampleStore:
    """The samples of one model on one benchmark."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        """name: of the benchmark. settings: everything that its samples depend on, in plain values."""
        content = (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()
        stem = f"{name.replace('/', '-')}-{hashlib.sha256(content).hexdigest()[:8]}"
        self.whole, self.parts = folder / f"{stem}.parquet", folder / f"{stem}.parts"
        write_whole(folder / f"{stem}.json", content)

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


def _write(path: Path, records: Sequence[Record]) -> None:
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
    parquet.write_table(arrow.Table.from_pylist([_encodable(row) for row in rows], schema), sink, compression="zstd")
    write_whole(path, sink.getvalue().to_pybytes())


def _encodable(row: dict[str, Any]) -> dict[str, Any]:
    """The row without halves of surrogate pairs, which a tokenizer may leave and no file can hold."""
    texts = {key: value.encode("utf-8", "replace").decode() for key, value in row.items() if isinstance(value, str)}
    return row | texts


def _read(path: Path) -> list[Record]:
    try:
        rows = parquet.read_table(path).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise RunError(f"{path}: cannot be read ({error}). Delete it to have it made anew.") from None
    records = []
    for (name, prompt, answer), group in itertools.groupby(rows, lambda row: (row["id"], row["prompt"], row["answer"])):
        samples = [{key: row[key] for key in SAMPLE_KEYS} for row in group]
        records.append({"id": name, "prompt": json.loads(prompt), "answer": answer, "samples": samples})
    return records
