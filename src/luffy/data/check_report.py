"""What `luffy data check` found in a file: as objects, as JSON, and as lines for the terminal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from luffy.data.load import DroppedRow
from luffy.data.overlap import Overlap
from luffy.data.prepare import shortened

SHOWN_ITEMS = 10  # of each kind, in the lines of a report
PERCENTILES = (50, 90, 99)
BARS = 10  # of a histogram, about
BAR_WIDTH = 40  # characters of the longest bar


@dataclass(frozen=True, slots=True)
class WrongTrace:
    """A trace that earns no reward, or whose log-probs do not fit its tokens."""

    row: int
    trace: int  # from 1
    extracted: str | None
    expected: str
    failure: str | None  # of the verifier, or what is wrong with the log-probs
    reason: str  # the same as a sentence


@dataclass(frozen=True, slots=True)
class BadAnswer:
    """A reference answer that the verifier cannot read, so that no completion would ever be right."""

    row: int
    answer: str
    reason: str


@dataclass(frozen=True, slots=True)
class BadPrompt:
    """A prompt that the template or the tokenizer refuses."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class UnclosedTrace:
    """A trace without the text that must close its thought, such as `</think>`."""

    row: int
    trace: int  # from 1
    ending: str  # the last words of the trace


@dataclass(frozen=True, slots=True)
class RepeatedPrompt:
    """A prompt that comes more than once."""

    rows: tuple[int, ...]
    answers: tuple[str, ...]  # the different ones, in the order of the rows; more than one is a contradiction


@dataclass(frozen=True, slots=True)
class Cut:
    """A prompt or trace over the limit, and what a cut at the limit would lose."""

    row: int
    trace: int | None  # from 1; None: the prompt
    tokens: int
    lost: str  # the text that begins at the limit


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long texts are, in tokens (traces with end-of-sequence)."""

    percentiles: dict[int, int]  # percent -> tokens
    longest: int
    limit: int | None
    cuts: tuple[Cut, ...]
    histogram: tuple[tuple[int, int], ...]  # (first length of a bar, number of texts); bars are equally wide

    @property
    def over_limit(self) -> tuple[int, ...]:
        """The rows with something over the limit."""
        return tuple(dict.fromkeys(cut.row for cut in self.cuts))


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a file of problems holds and what is wrong with it."""

    path: str
    digest: str
    problems: int
    traces: int
    without_traces: int  # problems
    sources: dict[str, int]  # problems by source
    bad_rows: tuple[DroppedRow, ...]
    repeated_prompts: tuple[RepeatedPrompt, ...]
    wrong_traces: tuple[WrongTrace, ...]
    bad_answers: tuple[BadAnswer, ...]
    bad_prompts: tuple[BadPrompt, ...]
    unclosed_traces: tuple[UnclosedTrace, ...]
    overlaps: tuple[Overlap, ...]
    prompt_lengths: Lengths | None  # None without a tokenizer
    trace_lengths: Lengths | None  # None without a tokenizer or without traces

    @property
    def duplicate_ids(self) -> tuple[DroppedRow, ...]:
        """Those of the bad rows whose id is that of an earlier row."""
        return tuple(row for row in self.bad_rows if row.duplicate_of is not None)

    @property
    def contradictions(self) -> tuple[RepeatedPrompt, ...]:
        """Prompts that come with different answers."""
        return tuple(repeated for repeated in self.repeated_prompts if len(repeated.answers) > 1)

    @property
    def ok(self) -> bool:
        """Nothing is broken: every row is a problem, every trace verifies, no prompt has two answers, ..."""
        found = (self.bad_rows, self.wrong_traces, self.contradictions, self.bad_answers, self.bad_prompts)
        return bool(self.problems) and not any((*found, self.unclosed_traces, self.overlaps))

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists, keys text
        for key, lengths in (("prompt_lengths", self.prompt_lengths), ("trace_lengths", self.trace_lengths)):
            if lengths is not None:
                plain[key]["over_limit"] = list(lengths.over_limit)
        return plain | {
            "ok": self.ok,
            "duplicate_ids": [row.row for row in self.duplicate_ids],
            "conflicting_answers": json.loads(json.dumps([asdict(repeated) for repeated in self.contradictions])),
        }

    def lines(self, shown: int = SHOWN_ITEMS) -> list[str]:
        """For the terminal, as plain text."""
        lines = [f"{self.path}: {self.problems} problems, {self.traces} traces"]
        if self.traces and self.without_traces:
            lines[0] += f", {self.without_traces} of the problems without a trace"
        if any(self.sources):
            lines.append("by source: " + ", ".join(f"{shortened(name)!r} {n}" for name, n in self.sources.items()))
        for what, lengths in (("prompts", self.prompt_lengths), ("traces", self.trace_lengths)):
            if lengths is not None:
                lines += _length_lines(what, lengths, shown)
        for title, items in self._findings():
            lines += _listed(title, items, shown)
        return [*lines, "ok" if self.ok else "not ok"]

    def _findings(self) -> Iterable[tuple[str, list[str]]]:
        """A title and a line for each finding, for each kind."""
        yield "bad rows", [f"row {row.row}: {row.reason}" for row in self.bad_rows]
        yield "answers that the verifier cannot read", [f"row {item.row}: {item.reason}" for item in self.bad_answers]
        yield "prompts that cannot be written", [f"row {item.row}: {item.reason}" for item in self.bad_prompts]
        wrong = [f"row {item.row}: trace {item.trace} {item.reason}" for item in self.wrong_traces]
        yield "traces that earn no reward", wrong
        unclosed = [f"row {item.row}: trace {item.trace} ends in {item.ending!r}" for item in self.unclosed_traces]
        yield "traces whose thought is never closed", unclosed
        different = [
            f"rows {_rows(item.rows)}: answers {', '.join(repr(shortened(answer)) for answer in item.answers)}"
            for item in self.contradictions
        ]
        yield "prompts with different answers", different
        overlaps = [f"row {item.row}: {item.benchmark}, {item.problem}: {item.words!r}" for item in self.overlaps]
        yield "problems that are in a benchmark", overlaps
        agreeing = [f"rows {_rows(item.rows)}" for item in self.repeated_prompts if len(item.answers) == 1]
        yield "prompts that come more than once (allowed)", agreeing


def measure(tokens: Sequence[int], limit: int | None, cuts: Sequence[Cut]) -> Lengths | None:
    """The distribution of lengths in tokens; None where there are none."""
    if not tokens:
        return None
    ordered = sorted(tokens)
    percentiles = {percent: ordered[(len(ordered) - 1) * percent // 100] for percent in PERCENTILES}
    return Lengths(percentiles, ordered[-1], limit, tuple(cuts), _histogram(ordered))


def _histogram(ordered: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """About `BARS` bars of a round width, from the shortest text to the longest."""
    span = ordered[-1] - ordered[0] + 1
    width = next(factor * 10**power for power in range(12) for factor in (1, 2, 5) if span <= BARS * factor * 10**power)
    first = ordered[0] // width
    counts = [0] * (ordered[-1] // width - first + 1)
    for tokens in ordered:
        counts[tokens // width - first] += 1
    return tuple(((first + index) * width, count) for index, count in enumerate(counts))


def _length_lines(what: str, lengths: Lengths, shown: int) -> list[str]:
    parts = [f"{percent} % up to {tokens}" for percent, tokens in lengths.percentiles.items()]
    line = f"{what}, tokens: {', '.join(parts)}, longest {lengths.longest}"
    if lengths.limit is not None:
        over = lengths.over_limit
        line += f"; {len(lengths.cuts) or 'none'} over the limit of {lengths.limit}" + (
            f" (rows {_rows(over)})" if over else ""
        )
    lines = [line, *_bars(lengths.histogram)]
    return lines + list(_listed(f"{what} that would be cut", [_cut_line(cut) for cut in lengths.cuts], shown))


def _bars(histogram: Sequence[tuple[int, int]]) -> list[str]:
    """The bars of a histogram, where there is more than one."""
    if len(histogram) < 2:
        return []
    width = histogram[1][0] - histogram[0][0]
    most = max(count for _, count in histogram)
    names = [f"{first}-{first + width - 1}" if width > 1 else str(first) for first, _ in histogram]
    longest = max(map(len, names))
    return [
        f"  {name:>{longest}} {'█' * -(-BAR_WIDTH * count // most)}{' ' if count else ''}{count}"
        for name, (_, count) in zip(names, histogram, strict=True)
    ]


def _cut_line(cut: Cut) -> str:
    what = "prompt" if cut.trace is None else f"trace {cut.trace}"
    return f"row {cut.row}: {what} has {cut.tokens} tokens, would lose {cut.lost!r}"


def _rows(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:SHOWN_ITEMS])) + (" and others" if len(rows) > SHOWN_ITEMS else "")


def _listed(title: str, items: Sequence[str], shown: int) -> Iterable[str]:
    if not items:
        return []
    more = [f"  and {len(items) - shown} more"] if len(items) > shown else []
    return [f"{title}: {len(items)}", *(f"  {item}" for item in items[:shown]), *more]
