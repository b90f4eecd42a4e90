"""Check a file of problems without training on it: `luffy data check FILE`.

Nothing stops at the first mistake: the report names every bad row, every trace that does not verify, prompts that come
twice and whether their answers agree, and, with a tokenizer, how long prompts and traces are.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luffy.data.load import DroppedRow, LoadedProblems, read_rows
from luffy.data.prepare import match_logprobs, rejection, shortened
from luffy.data.prompts import Template, encode_prompts, encode_traces
from luffy.reward import VerifierPool
from luffy.reward.verifiers import RewardFunction

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHOWN_ITEMS = 10  # of each kind, in the lines of a report
PERCENTILES = (50, 90, 99)


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
class RepeatedPrompt:
    """A prompt that comes more than once."""

    rows: tuple[int, ...]
    answers: tuple[str, ...]  # the different ones, in the order of the rows; more than one is a contradiction


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long texts are, in tokens (traces with end-of-sequence)."""

    percentiles: dict[int, int]  # percent -> tokens
    longest: int
    limit: int | None
    over_limit: tuple[int, ...]  # rows


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a file of problems holds and what is wrong with it."""

    path: str
    digest: str
    problems: int
    traces: int
    sources: dict[str, int]  # problems by source
    bad_rows: tuple[DroppedRow, ...]
    repeated_prompts: tuple[RepeatedPrompt, ...]
    wrong_traces: tuple[WrongTrace, ...]
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
        """Nothing is broken: every row is a problem, every trace verifies, no prompt has two answers."""
        return bool(self.problems) and not (self.bad_rows or self.wrong_traces or self.contradictions)

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))  # tuples become lists, keys text
        return plain | {
            "ok": self.ok,
            "duplicate_ids": [row.row for row in self.duplicate_ids],
            "conflicting_answers": json.loads(json.dumps([asdict(repeated) for repeated in self.contradictions])),
        }

    def lines(self, shown: int = SHOWN_ITEMS) -> list[str]:
        """For the terminal, as plain text."""
        lines = [f"{self.path}: {self.problems} problems, {self.traces} traces"]
        if any(self.sources):
            lines.append("by source: " + ", ".join(f"{shortened(name)!r} {n}" for name, n in self.sources.items()))
        for what, lengths in (("prompts", self.prompt_lengths), ("traces", self.trace_lengths)):
            if lengths is not None:
                lines.append(_length_line(what, lengths))
        lines += _listed("bad rows", [f"row {row.row}: {row.reason}" for row in self.bad_rows], shown)
        wrong = [f"row {item.row}: trace {item.trace} {item.reason}" for item in self.wrong_traces]
        lines += _listed("traces that earn no reward", wrong, shown)
        contradictions = [
            f"rows {_rows(item.rows)}: answers {', '.join(repr(shortened(answer)) for answer in item.answers)}"
            for item in self.contradictions
        ]
        lines += _listed("prompts with different answers", contradictions, shown)
        agreeing = [f"rows {_rows(item.rows)}" for item in self.repeated_prompts if len(item.answers) == 1]
        lines += _listed("prompts that come more than once (allowed)", agreeing, shown)
        return [*lines, "ok" if self.ok else "not ok"]


def check_file(
    path: str | Path,
    *,
    kind: str | RewardFunction,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: Template = "auto",
    max_prompt_tokens: int | None = None,
    max_completion_tokens: int | None = None,
    workers: int = 1,
    deadline: float = 5.0,
) -> CheckReport:
    """Check a file of problems.

    kind, workers, deadline: the verifier, as for `VerifierPool`. tokenizer, template and the limits in tokens: for the
    lengths, which are left out without a tokenizer. Raises DataError for a file that cannot be read or is empty, and
    ConfigError for an unknown kind.
    """
    loaded = read_rows(path)
    with VerifierPool(kind, workers=workers, deadline=deadline) as pool:
        wrong = _wrong_traces(loaded, pool)
    prompt_lengths = trace_lengths = None
    if tokenizer is not None:
        prompts = [len(ids) for ids in encode_prompts(loaded.problems, tokenizer, template)]
        prompt_lengths = _lengths(prompts, loaded.rows, max_prompt_tokens)
        places = _trace_places(loaded)
        traces = encode_traces([loaded.problems[index].traces[number] for index, number in places], tokenizer)
        rows = [loaded.rows[index] for index, _ in places]
        trace_lengths = _lengths([len(ids) for ids in traces], rows, max_completion_tokens)
        wrong += _wrong_logprobs(loaded, places, traces)
    return CheckReport(
        path=str(path),
        digest=loaded.digest,
        problems=len(loaded.problems),
        traces=sum(len(problem.traces) for problem in loaded.problems),
        sources=dict(Counter(problem.source for problem in loaded.problems).most_common()),
        bad_rows=tuple(loaded.dropped),
        repeated_prompts=_repeated_prompts(loaded),
        wrong_traces=tuple(sorted(wrong, key=lambda item: (item.row, item.trace))),
        prompt_lengths=prompt_lengths,
        trace_lengths=trace_lengths,
    )


def _trace_places(loaded: LoadedProblems) -> list[tuple[int, int]]:
    """The (index of the problem, index of the trace) of all traces."""
    return [(index, number) for index, problem in enumerate(loaded.problems) for number in range(len(problem.traces))]


def _wrong_traces(loaded: LoadedProblems, pool: VerifierPool) -> list[WrongTrace]:
    places = _trace_places(loaded)
    pairs = [(loaded.problems[index].traces[number].text, loaded.problems[index].answer) for index, number in places]
    return [
        WrongTrace(
            loaded.rows[index], number + 1, verdict.extracted, answer, verdict.failure, rejection(verdict, answer)
        )
        for (index, number), (_, answer), verdict in zip(places, pairs, pool.verify_all(pairs), strict=True)
        if not verdict.correct
    ]


def _wrong_logprobs(
    loaded: LoadedProblems, places: Sequence[tuple[int, int]], encoded: Sequence[Sequence[int]]
) -> list[WrongTrace]:
    wrong = []
    for (index, number), ids in zip(places, encoded, strict=True):
        problem = loaded.problems[index]
        _, reason = match_logprobs(problem.traces[number], ids)
        if reason:
            wrong.append(WrongTrace(loaded.rows[index], number + 1, None, problem.answer, reason, reason))
    return wrong


def _repeated_prompts(loaded: LoadedProblems) -> tuple[RepeatedPrompt, ...]:
    places: dict[str, list[int]] = defaultdict(list)
    for index, problem in enumerate(loaded.problems):
        prompt = problem.prompt
        key = prompt.strip() if isinstance(prompt, str) else json.dumps([sorted(message.items()) for message in prompt])
        places[key].append(index)
    return tuple(
        RepeatedPrompt(
            tuple(loaded.rows[index] for index in indices),
            tuple(dict.fromkeys(loaded.problems[index].answer for index in indices)),
        )
        for indices in places.values()
        if len(indices) > 1
    )


def _lengths(tokens: Sequence[int], rows: Sequence[int], limit: int | None) -> Lengths | None:
    if not tokens:
        return None
    ordered = sorted(tokens)
    percentiles = {percent: ordered[(len(ordered) - 1) * percent // 100] for percent in PERCENTILES}
    over = [row for row, length in zip(rows, tokens, strict=True) if limit is not None and length > limit]
    return Lengths(percentiles, ordered[-1], limit, tuple(dict.fromkeys(over)))


def _length_line(what: str, lengths: Lengths) -> str:
    parts = [f"{percent} % up to {tokens}" for percent, tokens in lengths.percentiles.items()]
    line = f"{what}, tokens: {', '.join(parts)}, longest {lengths.longest}"
    if lengths.limit is None:
        return line
    over = f"{len(lengths.over_limit)} over" if lengths.over_limit else "none over"
    return f"{line}; {over} the limit of {lengths.limit}" + (
        f" (rows {_rows(lengths.over_limit)})" if lengths.over_limit else ""
    )


def _rows(rows: Sequence[int]) -> str:
    return ", ".join(map(str, rows[:SHOWN_ITEMS])) + (" and others" if len(rows) > SHOWN_ITEMS else "")


def _listed(title: str, items: Sequence[str], shown: int) -> Iterable[str]:
    if not items:
        return []
    more = [f"  and {len(items) - shown} more"] if len(items) > shown else []
    return [f"{title}: {len(items)}", *(f"  {item}" for item in items[:shown]), *more]
