"""Ask a teacher for solutions, keep those that verify, and write problems with traces.

The first sample of every problem is asked for before the second of any, so that a collection that is stopped early has
covered as much as it could.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from luffy.collection.journal import Journal
from luffy.config import Config
from luffy.data import LoadedProblems
from luffy.data.prompts import encode_traces, messages_for_server
from luffy.data.rows import problem_row
from luffy.errors import RunError
from luffy.files import whole_file
from luffy.reward import VerifierPool
from luffy.rollout import Sampling
from luffy.rollout.endpoint import EndpointClient, Question, Reply, UnansweredError
from luffy.types import Problem, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Keep = Literal["first", "shortest", "all"]
UNANSWERED_IN_A_ROW = 10  # questions without any usable answer, after which the server is taken to be gone

OnAnswer = Callable[["CollectionReport", int], None]  # (so far, questions in all)


@dataclass(frozen=True, slots=True)
class TeacherSettings:
    """What the answers depend on."""

    model: str
    template: str
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    kind: str
    problems: str  # digest of the file

    @classmethod
    def of(cls, model: str, samples: int, config: Config, digest: str) -> TeacherSettings:
        """The settings of a configuration."""
        rollout = config.rollout
        return cls(
            model,
            config.data.template,
            samples,
            rollout.temperature,
            rollout.top_p,
            rollout.max_tokens,
            config.reward.kind,
            digest[:16],
        )


@dataclass(slots=True)
class CollectionReport:
    """What came of it."""

    problems: int
    asked: int = 0  # questions that were answered, earlier starts included
    verified: int = 0  # answers
    solved: int = 0  # problems with a verified answer
    unanswered: int = 0  # questions without a usable answer in all tries; they are asked again next time
    rejected: Counter[str] = field(default_factory=Counter)  # answers by cause
    prompt_tokens: int = 0
    completion_tokens: int = 0
    traces: int = 0  # written
    without_logprobs: Counter[str] = field(default_factory=Counter)  # traces by cause, where log-probs were wanted

    def lines(self, out: Path) -> list[str]:
        """For the terminal."""
        lines = [
            f"{out}: {self.problems} problems, {self.solved} with a verified trace, {self.traces} traces",
            f"answers: {self.asked}, verified {self.verified}; "
            f"tokens: {self.prompt_tokens:,} of prompts, {self.completion_tokens:,} of completions",
        ]
        lines += [f"  {number} {cause}" for cause, number in self.rejected.most_common()]
        lines += [f"  {number} without log-probs: {cause}" for cause, number in self.without_logprobs.most_common()]
        if self.unanswered:
            lines.append(f"{self.unanswered} questions got no usable answer; the same command asks them again.")
        if self.solved < self.problems:
            lines.append(f"{self.problems - self.solved} problems have no trace; they are in the file without one.")
        return lines


class Collector:
    """Asks, verifies, keeps; a collection that was stopped goes on."""

    def __init__(
        self,
        source: LoadedProblems,
        client: EndpointClient,
        settings: TeacherSettings,
        out: Path,
        *,
        keep: Keep = "first",
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        """out: the JSONL file; the journal lies beside it. keep: which of a problem's verified answers.

        tokenizer: of the model that will be trained; the teacher's log-probs are kept where its tokens are the same.
        """
        self.source, self.client, self.settings, self.out = source, client, settings, out
        self.keep, self.tokenizer = keep, tokenizer
        self.problems = {problem.id: problem for problem in source.problems}
        self.report = CollectionReport(len(self.problems))
        self._solved: set[str] = set()

    def run(self, pool: VerifierPool, on_answer: OnAnswer | None = None) -> CollectionReport:
        """Ask what is not yet answered, then write the file. Raises RunError when the server is gone for good."""
        journal = Journal(self.out.with_name(f"{self.out.name}.journal"), asdict(self.settings))
        for answer in journal.answers.values():
            self._count(answer)
        with journal:
            self._ask(journal, pool, on_answer)
        self._write(journal)
        return self.report

    def _ask(self, journal: Journal, pool: VerifierPool, on_answer: OnAnswer | None) -> None:
        asked: list[tuple[Problem, int]] = []
        sampling = Sampling(self.settings.max_tokens, self.settings.temperature, self.settings.top_p)
        in_a_row = 0
        for index, reply in self.client.ask_all(self._questions(journal, asked), sampling):
            if isinstance(reply, UnansweredError):
                self.report.unanswered += 1
                in_a_row += 1
                if in_a_row >= UNANSWERED_IN_A_ROW:
                    raise RunError(f"{reply} {in_a_row} questions in a row; the same command goes on from here.")
                continue
            in_a_row = 0
            answer = self._answer(*asked[index], reply, pool)
            journal.add(answer)
            self._count(answer)
            if on_answer:
                on_answer(self.report, len(self.problems) * self.settings.samples)

    def _questions(self, journal: Journal, asked: list[tuple[Problem, int]]) -> Iterator[Question]:
        """What is not yet answered, one after the other; `asked` is told which problem and sample each is."""
        for sample in range(self.settings.samples):
            for problem in self.source.problems:
                answered = (problem.id, sample) in journal.answers
                if answered or (self.keep == "first" and problem.id in self._solved):
                    continue
                asked.append((problem, sample))
                yield Question(messages_for_server(problem, self.settings.template), seed=sample)  # type: ignore[arg-type]

    def _answer(self, problem: Problem, sample: int, reply: Reply, pool: VerifierPool) -> dict[str, Any]:
        """The line of the journal. A completion that was cut off is not verified."""
        verdict = pool.verify_all([(reply.text, problem.answer)])[0] if reply.finished else None
        answer: dict[str, Any] = {
            "problem": problem.id,
            "sample": sample,
            "text": reply.text,
            "finished": reply.finished,
            "correct": verdict is not None and verdict.correct,
            "extracted": verdict.extracted if verdict else None,
            "failure": verdict.failure if verdict else None,
            "tokens": reply.tokens,
            "prompt_tokens": reply.prompt_tokens,
        }
        if reply.logprobs is not None:
            answer |= {"token_texts": reply.token_texts, "logprobs": reply.logprobs}
        return answer

    def _count(self, answer: dict[str, Any]) -> None:
        report = self.report
        report.asked += 1
        report.prompt_tokens += answer["prompt_tokens"]
        report.completion_tokens += answer["tokens"]
        if answer["correct"] and answer["text"].strip():
            report.verified += 1
            self._solved.add(answer["problem"])
            report.solved = len(self._solved)
        else:
            report.rejected[_cause(answer)] += 1

    def _write(self, journal: Journal) -> None:
        """The problems with the traces they had and the new ones, in the order of the file."""
        kept: dict[str, list[dict[str, Any]]] = {name: [] for name in self.problems}
        for key in sorted(journal.answers, key=lambda key: key[1]):
            answer = journal.answers[key]
            if answer["correct"] and answer["text"].strip():
                kept[answer["problem"]].append(answer)
        with whole_file(self.out) as file:
            for problem in self.source.problems:
                traces = [self._trace(answer) for answer in _choose(kept[problem.id], self.keep)]
                self.report.traces += len(traces)
                row = problem_row(replace(problem, traces=(*problem.traces, *traces)))
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def _trace(self, answer: dict[str, Any]) -> Trace:
        trace = Trace(answer["text"], self.settings.model)
        if self.tokenizer is None:
            return trace
        logprobs, cause = match_tokens(answer, self.tokenizer)
        if cause:
            self.report.without_logprobs[cause] += 1
        return replace(trace, logprobs=logprobs)


def match_tokens(answer: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[float, ...] | None, str]:
    """The teacher's log-probs [tokens] if they are of this tokenizer's tokens of the text, else why they are not."""
    if answer.get("logprobs") is None:
        return None, "the server gave none"
    *ids, end = encode_traces([Trace(answer["text"])], tokenizer)[0]
    own = [str(tokenizer.decode([one])) for one in ids]
    texts, logprobs = list(answer["token_texts"]), list(answer["logprobs"])
    if len(texts) == len(own) + 1 and texts[-1] in ("", str(tokenizer.decode([end]))):
        texts.pop()
    if texts != own:
        return None, "the teacher's tokens are others than those of the model to be trained"
    return tuple(min(0.0, value) for value in logprobs), ""


def _choose(answers: Sequence[dict[str, Any]], keep: Keep) -> list[dict[str, Any]]:
    """Of a problem's verified answers, in the order of their samples; equal texts once."""
    different = list({answer["text"]: answer for answer in reversed(answers)}.values())[::-1]
    if keep == "shortest":
        different.sort(key=lambda answer: (answer["tokens"] or len(answer["text"]), len(answer["text"])))
    return different if keep == "all" else different[:1]


def _cause(answer: dict[str, Any]) -> str:
    if not answer["finished"]:
        return "cut off by the length limit"
    if not answer["text"].strip():
        return "empty"
    if answer["failure"]:
        return f"verifier: {answer['failure']}"
    return "no answer found" if answer["extracted"] is None else "wrong"
