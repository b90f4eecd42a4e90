"""Check a file of problems without training on it: `luffy data check FILE`.

Nothing stops at the first mistake: the report names every bad row, every trace that does not verify, answers that the
verifier cannot read, prompts that come twice and whether their answers agree, problems that a benchmark has too, and,
with a tokenizer, how long prompts and traces are and what a limit would cut.

The file is read in blocks, so that the memory it takes does not grow with the length of the traces.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from luffy.config import ColumnsConfig
from luffy.data.check_report import (
    BadAnswer,
    BadPrompt,
    CheckReport,
    Cut,
    RepeatedPrompt,
    UnclosedTrace,
    WrongTrace,
    measure,
)
from luffy.data.load import DroppedRow, OnProgress, iterate_rows
from luffy.data.overlap import Overlap, OverlapIndex
from luffy.data.prepare import match_logprobs, rejection, shortened
from luffy.data.prompts import Template, encode_prompts, encode_traces
from luffy.data.readers import RowSource
from luffy.errors import DataError
from luffy.reward import VerifierPool
from luffy.reward.verifiers import RewardFunction
from luffy.types import Problem, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PROBLEMS_AT_ONCE = 256
SELF_CHECKED = ("number", "math")  # kinds for which the reference answer, given as the final answer, must be right
LOST_TOKENS = 20  # of what a limit would cut, that are shown

Numbered = tuple[int, Problem]  # row, problem


@dataclass(slots=True)
class Checks:
    """What is checked besides the rows themselves, and what was found so far."""

    tokenizer: PreTrainedTokenizerBase | None
    template: Template
    max_prompt_tokens: int | None
    max_completion_tokens: int | None
    closing: str | None
    index: OverlapIndex
    self_check: bool
    problems: int = 0
    traces: int = 0
    without_traces: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    bad_rows: list[DroppedRow] = field(default_factory=list)
    wrong: list[WrongTrace] = field(default_factory=list)
    bad_answers: list[BadAnswer] = field(default_factory=list)
    bad_prompts: list[BadPrompt] = field(default_factory=list)
    unclosed: list[UnclosedTrace] = field(default_factory=list)
    overlaps: list[Overlap] = field(default_factory=list)
    prompt_tokens: array[int] = field(default_factory=lambda: array("L"))
    trace_tokens: array[int] = field(default_factory=lambda: array("L"))
    prompt_cuts: list[Cut] = field(default_factory=list)
    trace_cuts: list[Cut] = field(default_factory=list)
    places: dict[bytes, list[tuple[int, bytes, str]]] = field(default_factory=dict)  # of a prompt: row, answer


def check_file(
    path: str | Path,
    *,
    kind: str | RewardFunction,
    tokenizer: PreTrainedTokenizerBase | None = None,
    template: Template = "auto",
    max_prompt_tokens: int | None = None,
    max_completion_tokens: int | None = None,
    closing: str | None = None,
    benchmarks: Mapping[str, Iterable[Problem]] | None = None,
    columns: ColumnsConfig | None = None,
    subset: str | None = None,
    split: str = "train",
    workers: int = 1,
    deadline: float = 5.0,
    on_progress: OnProgress | None = None,
) -> CheckReport:
    """Check a file of problems.

    kind, workers, deadline: the verifier, as for `VerifierPool`. tokenizer, template and the limits in tokens: for the
    lengths, which are left out without a tokenizer. closing: text that every trace must contain, such as `</think>`.
    benchmarks: problems by name, for the overlap. columns, subset, split: as for `load_problems`.
    Raises DataError for a file that cannot be read or is empty, and ConfigError for an unknown kind.
    """
    source = RowSource(path, subset=subset, split=split)
    self_check = isinstance(kind, str) and kind in SELF_CHECKED
    index = OverlapIndex(benchmarks or {})
    checks = Checks(tokenizer, template, max_prompt_tokens, max_completion_tokens, closing, index, self_check)
    with VerifierPool(kind, workers=workers, deadline=deadline) as pool:
        for block in _blocks(source, columns, checks):
            _check_block(block, checks, pool)
            if on_progress is not None:
                on_progress(checks.problems + len(checks.bad_rows), source.share)
    return _report(str(path), source.digest, checks)


def _blocks(source: RowSource, columns: ColumnsConfig | None, checks: Checks) -> Iterator[list[Numbered]]:
    """The problems with their rows, some at a time; rows that are none go into the report."""
    rows = iterate_rows(source, columns)
    while block := list(itertools.islice(rows, PROBLEMS_AT_ONCE)):
        checks.bad_rows += [row.dropped for row in block if row.dropped is not None]
        yield [(row.number, row.problem) for row in block if row.problem is not None]


def _check_block(block: Sequence[Numbered], checks: Checks, pool: VerifierPool) -> None:
    traces = [(row, number, trace, problem) for row, problem in block for number, trace in enumerate(problem.traces, 1)]
    pairs = [(trace.text, problem.answer) for _, _, trace, problem in traces]
    pending = pool.submit(pairs)  # workers verify while this process counts tokens
    checks.problems += len(block)
    checks.traces += len(traces)
    checks.without_traces += sum(not problem.traces for _, problem in block)
    for row, problem in block:
        checks.sources[problem.source] += 1
        _note_prompt(row, problem, checks)
    if checks.closing:
        checks.unclosed += [
            UnclosedTrace(row, number, shortened(trace.text))
            for row, number, trace, _ in traces
            if checks.closing not in trace.text
        ]
    if checks.tokenizer is not None:
        _measure_prompts(block, checks, checks.tokenizer)
        _measure_traces(traces, checks, checks.tokenizer)
    readable: set[int] = set()  # rows whose answer has been matched by a trace
    for (row, number, _, problem), verdict in zip(traces, pending.result(), strict=True):
        if verdict.correct:
            readable.add(row)
        else:
            reason = rejection(verdict, problem.answer)
            checks.wrong.append(WrongTrace(row, number, verdict.extracted, problem.answer, verdict.failure, reason))
    if checks.self_check:
        _check_answers([(row, problem) for row, problem in block if row not in readable], checks, pool)


def _note_prompt(row: int, problem: Problem, checks: Checks) -> None:
    prompt = problem.prompt
    text = prompt.strip() if isinstance(prompt, str) else json.dumps([sorted(message.items()) for message in prompt])
    answer = (row, _fingerprint(problem.answer), shortened(problem.answer, 200))
    checks.places.setdefault(_fingerprint(text), []).append(answer)
    overlap = checks.index.find(problem, row)
    if overlap is not None:
        checks.overlaps.append(overlap)


def _fingerprint(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).digest()


def _measure_prompts(block: Sequence[Numbered], checks: Checks, tokenizer: PreTrainedTokenizerBase) -> None:
    limit = checks.max_prompt_tokens
    for row, ids in _encoded_prompts(block, checks, tokenizer):
        checks.prompt_tokens.append(len(ids))
        if limit is not None and len(ids) > limit:
            checks.prompt_cuts.append(Cut(row, None, len(ids), _lost(ids, limit, tokenizer)))


def _encoded_prompts(
    block: Sequence[Numbered], checks: Checks, tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[int, list[int]]]:
    try:
        encoded = encode_prompts([problem for _, problem in block], tokenizer, checks.template)
        yield from zip((row for row, _ in block), encoded, strict=True)
    except DataError as error:
        if len(block) == 1:
            checks.bad_prompts.append(BadPrompt(block[0][0], str(error).rstrip(".")))
            return
        for one in block:
            yield from _encoded_prompts([one], checks, tokenizer)


def _measure_traces(
    traces: Sequence[tuple[int, int, Trace, Problem]], checks: Checks, tokenizer: PreTrainedTokenizerBase
) -> None:
    limit = checks.max_completion_tokens
    encoded = encode_traces([trace for _, _, trace, _ in traces], tokenizer) if traces else []
    for (row, number, trace, problem), ids in zip(traces, encoded, strict=True):
        checks.trace_tokens.append(len(ids))
        if limit is not None and len(ids) > limit:
            checks.trace_cuts.append(Cut(row, number, len(ids), _lost(ids, limit, tokenizer)))
        _, reason = match_logprobs(trace, ids)
        if reason:
            checks.wrong.append(WrongTrace(row, number, None, problem.answer, reason, reason))


def _lost(ids: Sequence[int], limit: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """The beginning of what a cut at the limit would lose."""
    text = str(tokenizer.decode(list(ids[limit : limit + LOST_TOKENS])))
    return text + ("…" if len(ids) > limit + LOST_TOKENS else "")


def _check_answers(block: Sequence[Numbered], checks: Checks, pool: VerifierPool) -> None:
    """Whether each reference answer, given as the final answer, is right."""
    verdicts = pool.verify_all([(as_final_answer(problem.answer), problem.answer) for _, problem in block])
    for (row, problem), verdict in zip(block, verdicts, strict=True):
        if not verdict.correct:
            answer = shortened(problem.answer)
            reason = verdict.failure or f"the answer {answer!r} is not equal to itself, read as {verdict.extracted!r}"
            checks.bad_answers.append(BadAnswer(row, problem.answer, reason))


def as_final_answer(answer: str) -> str:
    r"""A completion that says nothing but the answer: in a `\boxed{}`, unless it brings its own marks."""
    return answer if "\\boxed" in answer or "#" in answer else f"\\boxed{{{answer}}}"


def _report(path: str, digest: str, checks: Checks) -> CheckReport:
    repeated = [
        RepeatedPrompt(
            tuple(row for row, _, _ in places), tuple({fingerprint: shown for _, fingerprint, shown in places}.values())
        )
        for places in checks.places.values()
        if len(places) > 1
    ]
    return CheckReport(
        path=path,
        digest=digest,
        problems=checks.problems,
        traces=checks.traces,
        without_traces=checks.without_traces,
        sources=dict(checks.sources.most_common()),
        bad_rows=tuple(checks.bad_rows),
        repeated_prompts=tuple(repeated),
        wrong_traces=tuple(sorted(checks.wrong, key=lambda item: (item.row, item.trace))),
        bad_answers=tuple(checks.bad_answers),
        bad_prompts=tuple(checks.bad_prompts),
        unclosed_traces=tuple(checks.unclosed),
        overlaps=tuple(checks.overlaps),
        prompt_lengths=measure(checks.prompt_tokens, checks.max_prompt_tokens, checks.prompt_cuts),
        trace_lengths=measure(checks.trace_tokens, checks.max_completion_tokens, checks.trace_cuts),
    )
