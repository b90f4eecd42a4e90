"""From loaded problems to tokens: every prompt and trace is tokenised once, and every trace verified once.

Traces are not assumed to be right. They go through the same verifier as everything else, and what the reward says of
them is their reward. Whatever is left out, or kept although something is wrong with it, is in the report by name.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from luffy.data.load import LoadedProblems
from luffy.data.prompts import Template, count_tokens, encode_prompts, encode_traces, format_in_use
from luffy.errors import DataError
from luffy.formats import CompletionFormat
from luffy.reward import Verdict
from luffy.types import Problem, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VerifyAll = Callable[[Sequence[tuple[str, str]]], list[Verdict]]  # (text, reference answer) pairs -> verdicts

SHOWN_FINDINGS = 3  # of each kind, in the lines of a report


@dataclass(frozen=True, slots=True)
class EncodedTrace:
    """A trace as the learner takes it."""

    token_ids: tuple[int, ...]  # [tokens], end-of-sequence once at the end
    logprobs: tuple[float, ...] | None  # [tokens], of the teacher; None: pi_phi = 1
    text: str  # as the verifier saw it
    reward: float  # 1 when it verifies, else 0


@dataclass(frozen=True, slots=True)
class EncodedProblem:
    """A problem with everything that was tokenised of it."""

    problem: Problem
    prompt_ids: tuple[int, ...]  # [prompt tokens]
    traces: tuple[EncodedTrace, ...]


class Cause(enum.StrEnum):
    """Why something was left out, or is remarkable."""

    BAD_ROW = "bad row"
    LONG_PROMPT = "long prompt"
    LONG_TRACE = "long trace"
    WRONG_TRACE = "trace that does not verify"
    BROKEN_TRACE = "trace with wrong log-probs or an end inside"
    MISMATCHED_TRACE = "trace in another format than the prompt asks for"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was left out, or kept although something is wrong with it."""

    cause: Cause
    message: str  # with file and row, or problem
    kept: bool
    tokens: int = 0  # of what is too long


@dataclass(frozen=True, slots=True)
class PreparationReport:
    """What came through the preparation, and what did not."""

    problems: int
    traces: int
    findings: tuple[Finding, ...]

    def count(self, cause: Cause) -> int:
        """How many findings have this cause."""
        return sum(finding.cause is cause for finding in self.findings)

    def why_no_trace(self) -> str:
        """Why no trace is left, and what to do, as sentences."""
        lost = Counter(finding.cause for finding in self.findings if "trace" in finding.cause and not finding.kept)
        if not lost:
            return "Add `traces` to the rows, or train with method=on_policy."
        counted = ", ".join(f"{cause}: {number}" for cause, number in lost.items())
        lengths = sorted(finding.tokens for finding in self.findings if finding.cause is Cause.LONG_TRACE)
        if not lengths:
            return f"Left out, {counted}."
        half, longest = lengths[len(lengths) // 2], lengths[-1]
        some = f"rollout.max_tokens={half} would keep half of the long ones, {longest} all of them."
        return f"Left out, {counted}. {some if half < longest else f'rollout.max_tokens={longest} would keep it.'}"

    def lines(self, shown: int = SHOWN_FINDINGS) -> list[str]:
        """For the terminal: a line for what there is, then for each cause its number and the first findings."""
        lines = [f"{self.problems} problems with {self.traces} traces"]
        counts = Counter((finding.cause, finding.kept) for finding in self.findings)
        for (cause, kept), number in counts.items():
            messages = [finding.message for finding in self.findings if (finding.cause, finding.kept) == (cause, kept)]
            lines.append(f"{'kept' if kept else 'left out'}, {cause}: {number}")
            lines += [f"  {message}" for message in messages[:shown]]
            if number > shown:
                lines.append(f"  and {number - shown} more")
        return lines

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain values."""
        findings = [{"cause": str(item.cause), "kept": item.kept, "message": item.message} for item in self.findings]
        return {"problems": self.problems, "traces": self.traces, "findings": findings}


@dataclass(frozen=True, slots=True)
class PreparedProblems:
    """What a run trains on."""

    problems: list[EncodedProblem]
    report: PreparationReport


def prepare_problems(
    problems: LoadedProblems | Sequence[Problem],
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: Template,
    max_prompt_tokens: int,
    max_completion_tokens: int,
    verify: VerifyAll,
    on_long_prompt: Literal["refuse", "drop"],
    on_bad_trace: Literal["refuse", "drop", "keep"],
    on_long_trace: Literal["refuse", "drop"],
    layout: CompletionFormat | None = None,
) -> PreparedProblems:
    """Tokenise prompts and traces, verify the traces, and leave out what the configuration says.

    verify: (trace text, reference answer) pairs -> verdicts; called once, with all traces that are not too long.
    The limits are in tokens, end-of-sequence included; `on_...` are the keys of `data` with these names.
    layout: of completions, by the configuration; a trace's opening tag is left out where the prompt has written it, and
    a trace that lacks what the prompt asks for (the end marker of the thought, the box) is kept and reported.
    Raises DataError naming file and row for what is refused, and when no problem is left.
    """
    loaded = problems if isinstance(problems, LoadedProblems) else LoadedProblems.of(problems)
    findings = [
        Finding(Cause.BAD_ROW, f"{loaded.name}, row {item.row}: {item.reason}", kept=False) for item in loaded.dropped
    ]
    log = _FindingLog(findings, on_long_prompt, on_bad_trace, on_long_trace)
    layout = format_in_use(loaded.problems[0], tokenizer, template, layout or CompletionFormat())
    share: dict[int, int] = {}  # one object for each token id: an int takes 28 bytes and data sets have 10^8 of them
    prompts: dict[int, tuple[int, ...]] = {}  # by index of the problem
    for index, ids in enumerate(encode_prompts(loaded.problems, tokenizer, template)):
        if len(ids) > max_prompt_tokens:
            log.long_prompt(loaded.where(index), len(ids), max_prompt_tokens)
        else:
            prompts[index] = tuple(map(share.setdefault, ids, ids))
    traces: dict[int, list[EncodedTrace]] = {index: [] for index in prompts}
    for candidate, verdict in _verified(loaded, prompts, tokenizer, max_completion_tokens, verify, log, layout):
        if candidate.broken and not log.broken_trace(candidate):
            continue
        if not verdict.correct and not log.wrong_trace(candidate, verdict):
            continue
        log.mismatched_trace(candidate, layout)
        token_ids = tuple(map(share.setdefault, candidate.ids, candidate.ids))
        traces[candidate.index].append(
            EncodedTrace(token_ids, candidate.logprobs, candidate.text, float(verdict.correct))
        )
    if not prompts:
        raise DataError(f"every problem was left out. The first one: {log.findings[0].message}.")
    encoded = [EncodedProblem(loaded.problems[index], ids, tuple(traces[index])) for index, ids in prompts.items()]
    trace_count = sum(map(len, traces.values()))
    return PreparedProblems(encoded, PreparationReport(len(encoded), trace_count, tuple(log.findings)))


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A trace on its way into the prepared problems."""

    index: int  # of its problem
    where: str  # `train.jsonl, row 12: trace 1`
    answer: str
    text: str
    ids: list[int]  # [tokens]
    logprobs: tuple[float, ...] | None  # [tokens]
    broken: str  # what is wrong with it, or an empty string


def _verified(
    loaded: LoadedProblems,
    indices: Sequence[int] | dict[int, tuple[int, ...]],
    tokenizer: PreTrainedTokenizerBase,
    max_tokens: int,
    verify: VerifyAll,
    log: _FindingLog,
    layout: CompletionFormat,
) -> Iterator[tuple[_Candidate, Verdict]]:
    """The traces of the problems at `indices` that are not too long, each with its verdict."""
    places = [(index, number) for index in indices for number in range(len(loaded.problems[index].traces))]
    if not places:
        return
    encoded = encode_traces([loaded.problems[index].traces[number] for index, number in places], tokenizer, layout)
    candidates = []
    for (index, number), ids in zip(places, encoded, strict=True):
        problem = loaded.problems[index]
        where = f"{loaded.where(index)}: trace {number + 1}"
        if len(ids) > max_tokens:
            log.long_trace(where, len(ids), max_tokens)
            continue
        trace = without_opening(problem.traces[number], tokenizer, layout)
        logprobs, broken = match_logprobs(trace, ids)
        if ids[-1] in ids[:-1]:
            broken = "has an end-of-sequence token before its end"
        candidates.append(_Candidate(index, where, problem.answer, trace.text, ids, logprobs, broken))
    verdicts = verify([(candidate.text, candidate.answer) for candidate in candidates]) if candidates else []
    yield from zip(candidates, verdicts, strict=True)


def without_opening(trace: Trace, tokenizer: PreTrainedTokenizerBase, layout: CompletionFormat) -> Trace:
    """The trace as it follows a prompt that may have opened the thought: text, and log-probs of the tokens left."""
    text = layout.written_after_prompt(trace.text)
    if text == trace.text or trace.logprobs is None:
        return replace(trace, text=text)
    opening = trace.text[: len(trace.text) - len(text)]
    return replace(trace, text=text, logprobs=trace.logprobs[count_tokens(opening, tokenizer) :])


def match_logprobs(trace: Trace, ids: Sequence[int]) -> tuple[tuple[float, ...] | None, str]:
    """The trace's log-probs for its tokens [tokens], and what is wrong with them (an empty string: nothing).

    Log-probs of the text alone get 0 for end-of-sequence, as if the teacher had been certain to stop there.
    """
    if trace.logprobs is None or len(trace.logprobs) == len(ids):
        return trace.logprobs, ""
    if len(trace.logprobs) == len(ids) - 1:
        return (*trace.logprobs, 0.0), ""
    return None, f"has {len(trace.logprobs)} logprobs for {len(ids) - 1} tokens and end-of-sequence"


class _FindingLog:
    """Collects findings, or raises where the configuration refuses them. The methods return whether to keep."""

    def __init__(self, findings: list[Finding], on_long_prompt: str, on_bad_trace: str, on_long_trace: str) -> None:
        self.findings = findings
        self._on_long_prompt = on_long_prompt
        self._on_bad_trace = on_bad_trace
        self._on_long_trace = on_long_trace

    def long_prompt(self, where: str, tokens: int, limit: int) -> None:
        message = f"{where}: the prompt has {tokens} tokens, more than data.max_prompt_tokens={limit}"
        if self._on_long_prompt == "refuse":
            raise DataError(f"{message}. To leave such problems out: data.on_long_prompt=drop")
        self.findings.append(Finding(Cause.LONG_PROMPT, message, kept=False, tokens=tokens))

    def long_trace(self, where: str, tokens: int, limit: int) -> None:
        message = f"{where} has {tokens} tokens, more than rollout.max_tokens={limit}"
        if self._on_long_trace == "refuse":
            raise DataError(f"{message}. To leave such traces out: data.on_long_trace=drop")
        self.findings.append(Finding(Cause.LONG_TRACE, message, kept=False, tokens=tokens))

    def wrong_trace(self, candidate: _Candidate, verdict: Verdict) -> bool:
        return self._bad_trace(Cause.WRONG_TRACE, f"{candidate.where} {rejection(verdict, candidate.answer)}")

    def broken_trace(self, candidate: _Candidate) -> bool:
        kept_anyway = " (kept as if it had none)" if self._on_bad_trace == "keep" and candidate.logprobs is None else ""
        return self._bad_trace(Cause.BROKEN_TRACE, f"{candidate.where} {candidate.broken}{kept_anyway}")

    def mismatched_trace(self, candidate: _Candidate, layout: CompletionFormat) -> None:
        """A trace that teaches another format than the prompt asks for is right, but worth a warning."""
        flaw = layout.flaw(candidate.text)
        if flaw is not None:
            example = f"{candidate.where} {flaw}; it ends in {shortened(candidate.text)!r}"
            self.findings.append(Finding(Cause.MISMATCHED_TRACE, example, kept=True))

    def _bad_trace(self, cause: Cause, message: str) -> bool:
        if self._on_bad_trace == "refuse":
            remedy = "To leave such traces out: data.on_bad_trace=drop. To keep them: data.on_bad_trace=keep"
            raise DataError(f"{message}. {remedy}")
        kept = self._on_bad_trace == "keep"
        self.findings.append(Finding(cause, message, kept))
        return kept


def rejection(verdict: Verdict, answer: str) -> str:
    """Why a trace has no reward, as the end of a sentence: `does not verify: got '12', expected '21'`."""
    if verdict.failure is not None:
        return f"could not be verified ({verdict.failure})"
    got = "" if verdict.extracted is None else f"got {shortened(verdict.extracted)!r}, "
    return f"does not verify: {got}expected {shortened(answer)!r}"


def shortened(text: str, characters: int = 60) -> str:
    """The text, or its last characters, where an answer stands."""
    return text if len(text) <= characters else "…" + text[1 - characters :]
