"""`luffy data prepare NAME`: a public set, from the hub or from files, as problems with traces in a JSONL file.

Every trace is measured and verified before it is written; what is left out is counted, and stands with its reason in a
file beside (`gsm8k-left-out.jsonl`). Both files are written whole or not at all.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luffy.config import MINIATURE, load_config, nearest
from luffy.data.fix import left_out_path, remove_empty
from luffy.data.load import OnProgress, load_training_problems
from luffy.data.prepare import rejection
from luffy.data.procedural import procedural_problems
from luffy.data.prompts import encode_traces
from luffy.data.public_sets import Converted, LeftOut, PublicSet, find_set
from luffy.data.readers import FORMATS, RowSource
from luffy.data.rows import RowError, problem_row
from luffy.errors import ConfigError, DataError
from luffy.files import whole_file
from luffy.reward import VerifierPool
from luffy.types import Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REASONING_GYM = "reasoning-gym:"
ROWS_AT_ONCE = 256
SHOWN_CAUSES = 20
DEADLINE = 5.0  # seconds for one verification

Keep = Literal["first", "shortest", "all"]
Block = list[tuple[int, Converted]]  # row number, problem with candidates for traces


@dataclass(slots=True)
class PreparedSet:
    """What was written, and what was left out."""

    name: str
    path: str
    kind: str  # of the verifier for training on it
    problems: int = 0
    traces: int = 0
    without_traces: int = 0  # problems
    left_out_rows: Counter[str] = field(default_factory=Counter)  # by cause
    left_out_traces: Counter[str] = field(default_factory=Counter)  # by cause

    def count(self, one: Converted) -> None:
        """Count what became of a row."""
        for finding in one.left_out:
            (self.left_out_rows if finding.trace is None else self.left_out_traces)[finding.cause] += 1
        if one.problem is not None:
            self.problems += 1
            self.traces += len(one.problem.traces)
            self.without_traces += not one.problem.traces

    def lines(self) -> list[str]:
        """For the terminal."""
        lines = [f"{self.path}: {self.problems} problems, {self.traces} traces, {self.without_traces} problems without"]
        for what, counts in (("rows", self.left_out_rows), ("traces", self.left_out_traces)):
            if counts:
                lines.append(f"left out, {what}: {counts.total()}")
                lines += [f"  {number} {cause}" for cause, number in counts.most_common(SHOWN_CAUSES)]
        if self.left_out_rows or self.left_out_traces:
            lines.append(f"each with its reason: {left_out_path(Path(self.path))}")
        return [*lines, f"to train on it: data.train={self.path} reward.kind={self.kind}"]

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        return {key: getattr(self, key) for key in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which traces are kept."""

    tokenizer: PreTrainedTokenizerBase | None
    max_tokens: int | None  # end-of-sequence included
    keep: Keep
    needs_trace: bool


@dataclass(frozen=True, slots=True)
class _Measured:
    """A trace that may be kept."""

    length: int  # in tokens, end-of-sequence included; in characters without a tokenizer
    number: int  # of the trace in its row, from 1
    trace: Trace


def prepare_public(
    name: str,
    out: Path,
    *,
    files: Sequence[str] = (),
    parameters: Mapping[str, Any] | None = None,
    split: str = "train",
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_tokens: int | None = None,
    keep: Keep = "first",
    kind: str | None = None,
    limit: int | None = None,
    workers: int = 1,
    on_progress: OnProgress | None = None,
) -> PreparedSet:
    """Write a public set as problems with traces.

    name: a key of `PUBLIC_SETS`, `miniature`, or `reasoning-gym:TASK`. files: in place of the hub. parameters: of the
    miniature (its dials) or the task. max_tokens: longest trace, by this tokenizer; the set's own where None. keep:
    which of a problem's traces. kind: verifier of the traces, "none" for none; the set's own where None. A task's
    answers are written for this kind. limit: of problems. Raises ConfigError for an unknown name or parameter,
    DataError for files that cannot be used.
    """
    if name == MINIATURE or name.startswith(REASONING_GYM):
        if files:
            raise ConfigError(f"{name}: is made here and not read, so --from has no meaning.")
        total, converted, made_kind = _made(name, parameters or {}, kind)
        blocks = _blocks(enumerate(converted, start=1), on_progress, lambda row: row / total)
        prepared, verifier, needs_trace = PreparedSet(name, str(out), made_kind), "none", False
    else:
        public = find_set(name)
        if parameters:
            raise ConfigError(f"{name}: has no parameters, got {', '.join(parameters)}.")
        max_tokens = max_tokens or public.max_tokens
        sources = [RowSource(file, split=split) for file in expand(files)]
        sources = sources or [RowSource(public.hub, subset=public.subset, split=split)]
        blocks = _blocks(_converted(name, public, sources), on_progress, lambda _: _share(sources))
        prepared = PreparedSet(name, str(out), public.kind)
        verifier = kind or ("none" if public.verified else public.kind)
        needs_trace = public.needs_trace
    if max_tokens is not None and tokenizer is None:
        raise ConfigError(
            f"{name}: traces of at most {max_tokens} tokens need a tokenizer to count them: --model, with the model "
            "that will be trained."
        )
    if out.resolve() in [Path(file).resolve() for file in files]:
        raise ConfigError(f"{out}: is one of the files that are read; give --out another name.")
    selection = Selection(tokenizer, max_tokens, keep, needs_trace)
    _write(blocks, out, prepared, selection, verifier, limit, workers)
    remove_empty(left_out_path(out))
    return prepared


def expand(files: Sequence[str]) -> list[str]:
    """The files, where a folder that `datasets` did not save stands for the data files in it."""
    expanded: list[str] = []
    for name in files:
        path = Path(name)
        saved = any((path / mark).exists() for mark in ("state.json", "dataset_dict.json"))
        inside = (
            [] if saved or not path.is_dir() else sorted(file for file in path.rglob("*") if file.suffix in FORMATS)
        )
        expanded += map(str, inside) if inside else [name]
    return expanded


def _made(name: str, parameters: Mapping[str, Any], kind: str | None) -> tuple[int, Iterator[Converted], str]:
    """How many problems there will be, the problems, and their verifier."""
    if name == MINIATURE:
        config = load_config(None, {f"data.miniature.{key}": value for key, value in parameters.items()})
        problems = load_training_problems(config.data).problems
        return len(problems), (Converted(problem) for problem in problems), "exact"
    verifier = "reasoning_gym" if kind in (None, "none") else str(kind)
    plain = verifier != "reasoning_gym"
    count, converted = procedural_problems(name.removeprefix(REASONING_GYM), parameters, plain_answers=plain)
    return count, converted, verifier


def _share(sources: Sequence[RowSource]) -> float | None:
    return sum(source.share or 0.0 for source in sources) / len(sources)


def _converted(name: str, public: PublicSet, sources: Sequence[RowSource]) -> Iterator[tuple[int, Converted]]:
    """The rows of all sources, numbered through, as problems."""
    number = 0
    for source in sources:

        def check_header(header: Sequence[str], source: RowSource = source) -> None:
            missing = next((column for column in public.columns if column not in header), None)
            if missing is not None:
                raise DataError(
                    f"{source.name}: is not {name}: there is no column {missing!r}.{nearest(missing, header)} "
                    f"It has: {', '.join(header)}."
                )

        for row, raw in source.rows(check_header):
            number += 1
            if number == 1 and isinstance(raw, dict):
                check_header(list(raw))
            try:
                if not isinstance(raw, dict):
                    raise raw if isinstance(raw, RowError) else RowError("is no object")
                yield number, public.convert(raw, f"{name}-{number}")
            except RowError as error:
                yield (
                    number,
                    Converted(None, (LeftOut("a row that is not as the set has them", f"row {row}: {error}"),)),
                )
    if not number:
        raise DataError(f"{', '.join(source.name for source in sources)}: no rows, expected the columns of {name}.")


def _blocks(rows: Iterable[tuple[int, Converted]], on_progress: OnProgress | None, share: Any) -> Iterator[Block]:
    rows = iter(rows)
    while block := list(itertools.islice(rows, ROWS_AT_ONCE)):
        yield block
        if on_progress is not None:
            on_progress(block[-1][0], share(block[-1][0]))


def _write(
    blocks: Iterable[Block],
    out: Path,
    prepared: PreparedSet,
    selection: Selection,
    verifier: str,
    limit: int | None,
    workers: int,
) -> None:
    ids: set[str] = set()
    with (
        VerifierPool("exact" if verifier == "none" else verifier, workers=workers, deadline=DEADLINE) as pool,
        whole_file(left_out_path(out)) as left_out,
        whole_file(out) as clean,
    ):
        finished = (
            item for block in blocks for item in _selected(block, selection, None if verifier == "none" else pool)
        )
        for row, one in itertools.takewhile(lambda _: prepared.problems != limit, finished):
            one = _with_new_id(one, ids)
            prepared.count(one)
            for finding in one.left_out:
                what = {"row": row, "trace": finding.trace, "reason": finding.cause, "detail": finding.detail}
                left_out.write(_line(what))
            if one.problem is not None:
                clean.write(_line(problem_row(one.problem)))
        if not prepared.problems:
            causes = ", ".join(f"{cause} ({number})" for cause, number in prepared.left_out_rows.most_common(3))
            raise DataError(f"{prepared.name}: no problem is left, so nothing was written. Left out: {causes}.")


def _with_new_id(one: Converted, ids: set[str]) -> Converted:
    """The same, unless an earlier problem has its id."""
    if one.problem is None:
        return one
    if one.problem.id in ids:
        return Converted(None, (*one.left_out, LeftOut("an id that was used before", one.problem.id)))
    ids.add(one.problem.id)
    return one


def _selected(block: Block, selection: Selection, pool: VerifierPool | None) -> Iterator[tuple[int, Converted]]:
    """The rows with those of their traces that are short enough, right, and wanted."""
    candidates = [(index, number, trace) for index, (_, one) in enumerate(block) for number, trace in one.traces()]
    kept: dict[int, list[_Measured]] = {index: [] for index in range(len(block))}
    findings = {index: list(one.left_out) for index, (_, one) in enumerate(block)}
    tokens = _count_tokens([trace for _, _, trace in candidates], selection)
    pairs = [(trace.text, _answer(block[index][1])) for index, _, trace in candidates]
    verdicts = [None] * len(pairs) if pool is None else pool.verify_all(pairs)
    for (index, number, trace), length, verdict, (_, answer) in zip(candidates, tokens, verdicts, pairs, strict=True):
        if selection.max_tokens is not None and length > selection.max_tokens:
            cause = f"trace of more than {selection.max_tokens} tokens"
            findings[index].append(LeftOut(cause, f"{length} tokens", number))
        elif verdict is not None and not verdict.correct:
            findings[index].append(LeftOut("trace that is not right", rejection(verdict, answer), number))
        else:
            kept[index].append(_Measured(length, number, trace))
    for index, (row, one) in enumerate(block):
        yield row, _finished(one, kept[index], findings[index], selection)


def _finished(one: Converted, kept: list[_Measured], findings: list[LeftOut], selection: Selection) -> Converted:
    if one.problem is None:
        return one
    if not kept and selection.needs_trace:
        return Converted(None, (*findings, LeftOut("no trace is left")))
    if selection.keep == "shortest":
        kept = sorted(kept, key=lambda item: item.length)
    chosen = kept if selection.keep == "all" else kept[:1]
    findings += [LeftOut("one trace a problem is kept", trace=item.number) for item in kept[len(chosen) :]]
    return Converted(replace(one.problem, traces=tuple(item.trace for item in chosen)), tuple(findings))


def _count_tokens(traces: Sequence[Trace], selection: Selection) -> list[int]:
    """The lengths in tokens, end-of-sequence included; in characters where there is no tokenizer."""
    if selection.tokenizer is None:
        return [len(trace.text) for trace in traces]
    return [len(ids) for ids in encode_traces(traces, selection.tokenizer)] if traces else []


def _answer(one: Converted) -> str:
    return one.problem.answer if one.problem is not None else ""


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) + "\n"
