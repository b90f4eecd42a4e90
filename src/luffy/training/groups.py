"""The steps before the update: collect groups, assign advantages.

What is sampled depends on the seed, the step and the attempt alone, never on what was sampled before: a run that is
resumed needs no generator state to continue exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from luffy.algorithm import Method, group_advantages
from luffy.config import Config
from luffy.errors import RunError
from luffy.rollout import Engine, Sampling, stream
from luffy.training.clock import Clock
from luffy.training.draw import seed_of
from luffy.training.world import ALONE, World, in_order
from luffy.types import Completion, Group, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luffy.data import EncodedProblem, EncodedTrace
    from luffy.reward import Verdict


class Pending(Protocol):
    """Verdicts that are being found out."""

    def result(self) -> list[Verdict]:
        """Wait for all of them."""
        ...


Submit = Callable[[Sequence[tuple[str, str]]], Pending]  # pairs of completion and answer, to be verified


def collect_groups(
    problems: Sequence[EncodedProblem],
    *,
    engine: Engine,
    submit: Submit,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    config: Config,
    step: int,
    clock: Clock,
    attempt: int = 0,
    vocabulary: int | None = None,
    world: World = ALONE,
) -> list[Group]:
    """Sample rollouts for each problem, verify them, and let the traces join as the method says.

    submit: starts to verify. Where it does so in other processes and the engine can stream, the first groups are
    verified while others are still generated; the clock counts as `verify` only what is waited for.
    attempt: how often problems of this step have been sampled before; like the step it decides what is sampled.
    vocabulary: tokens that the model knows. Raises RunError where the engine returns others, or too few completions.
    A group always has `rollout.group_size` members: a problem with fewer traces than asked for gets more rollouts.
    world: each process samples and verifies its share of the problems; all of them return all groups.
    """
    traces = [_choose_traces(problem, method, config, step) for problem in problems]
    counts = [config.rollout.group_size - len(chosen) for chosen in traces]
    share = world.share(len(problems))

    def rollouts_of_share() -> list[list[Rollout]]:
        sampled: dict[int, _Sampled] = {}
        with clock("generate"):
            for index, completions in _sample(problems, counts, share, engine, config, step, attempt):
                if vocabulary is not None:
                    _refuse_unknown_tokens(completions, vocabulary)
                texts = [decode(completion, tokenizer) for completion in completions]
                with clock("verify"):
                    sampled[index] = _Sampled(
                        completions, texts, _submit_finished(problems[index], completions, texts, submit)
                    )
        with clock("verify"):
            return [sampled[index].rollouts(problems[index]) for index in share]

    with clock("gather") if world.size > 1 else nullcontext():
        own = in_order(world.together(rollouts_of_share))
    return [
        Group(problem.problem, rollouts + [trace_rollout(problem, trace) for trace in expert])
        for problem, rollouts, expert in zip(problems, own, traces, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Sampled:
    """The own completions of a group while they are verified."""

    completions: list[Completion]
    texts: list[str]
    pending: Pending  # verdicts of those that ended by themselves

    def rollouts(self, problem: EncodedProblem) -> list[Rollout]:
        """Wait for the verdicts."""
        verdicts = iter(self.pending.result())
        return [
            sampled_rollout(problem, completion, text, next(verdicts) if completion.finished else None)
            for completion, text in zip(self.completions, self.texts, strict=True)
        ]


def assign_advantages(groups: Sequence[Group], method: Method, config: Config) -> None:
    """Fill in the advantages of every group."""
    for group in groups:
        advantages = group_advantages(
            torch.tensor([rollout.reward for rollout in group.rollouts], dtype=torch.float64),
            torch.tensor([rollout.off_policy for rollout in group.rollouts]),
            baseline=method.baseline,
            scale=config.objective.scale,
        )
        group.advantages = advantages.tolist()


def refuse_failing_verifier(groups: Sequence[Group], share: float) -> None:
    """Stop a run whose verifier fails. share: the most of the verified completions that may have no verdict.

    Raises RunError, naming the first failure.
    """
    own = [rollout for group in groups for rollout in group.rollouts if not rollout.off_policy]
    verified = sum(rollout.finished for rollout in own)
    failures = [rollout.failure for rollout in own if rollout.failure is not None]
    allowed = max(1, share * verified) if share else 0  # a single failure says little, unless none may be
    if len(failures) > allowed:
        raise RunError(
            f"the verifier failed on {len(failures)} of {verified} completions of a step (first: {failures[0]}). "
            "Correct the reward function or raise reward.deadline or reward.max_failures."
        )


def has_signal(group: Group, method: Method) -> bool:
    """Whether anything can be learned from a group: an advantage other than 0, or a trace that is imitated anyway."""
    imitated = method.traces == "supervised" and any(rollout.off_policy for rollout in group.rollouts)
    return imitated or any(group.advantages)


def sampled_rollout(problem: EncodedProblem, completion: Completion, text: str, verdict: Verdict | None) -> Rollout:
    """A rollout of the policy's own; verdict None: it was cut off, so it has no final answer."""
    return Rollout(
        prompt_ids=problem.prompt_ids,
        completion_ids=completion.token_ids,
        behavior_logprobs=completion.logprobs,
        off_policy=False,
        finished=completion.finished,
        reward=float(verdict is not None and verdict.correct),
        text=text,
        failure=verdict.failure if verdict is not None else None,
        extracted=verdict.extracted if verdict is not None else None,
    )


def trace_rollout(problem: EncodedProblem, trace: EncodedTrace) -> Rollout:
    """An expert trace as a rollout; without recorded log-probs its behaviour policy is taken as pi_phi = 1."""
    return Rollout(
        prompt_ids=problem.prompt_ids,
        completion_ids=trace.token_ids,
        behavior_logprobs=trace.logprobs if trace.logprobs is not None else [0.0] * len(trace.token_ids),
        off_policy=True,
        finished=True,
        reward=trace.reward,
        text=trace.text,
    )


def decode(completion: Completion, tokenizer: PreTrainedTokenizerBase) -> str:
    """The completion as text, special tokens left out."""
    return str(tokenizer.decode(list(completion.token_ids), skip_special_tokens=True))


def _refuse_unknown_tokens(completions: Sequence[Completion], vocabulary: int) -> None:
    """Raise RunError where an engine returns tokens that there are not: it generates with another model."""
    wrong = [token for completion in completions for token in completion.token_ids if not 0 <= token < vocabulary]
    if wrong:
        raise RunError(
            f"the engine returned token {wrong[0]}, and the vocabulary ends at {vocabulary - 1}: it does not generate "
            "with the model that is trained."
        )


def _choose_traces(problem: EncodedProblem, method: Method, config: Config, step: int) -> list[EncodedTrace]:
    wanted = config.rollout.traces if method.traces != "none" else 0
    if len(problem.traces) <= wanted:
        return list(problem.traces)
    generator = random.Random(seed_of("traces", config.seed, step, problem.problem.id))
    return generator.sample(problem.traces, wanted)


def _sample(
    problems: Sequence[EncodedProblem],
    counts: Sequence[int],
    share: range,
    engine: Engine,
    config: Config,
    step: int,
    attempt: int,
) -> Iterator[tuple[int, list[Completion]]]:
    """(Problem index, completions) of the share, in any order; an engine call for each number of rollouts.

    That is nearly always one. What is sampled depends on the place among all problems of that number.
    """
    for count in sorted({counts[index] for index in share}):
        chosen = [index for index in share if counts[index] == count]
        sampling = Sampling(
            max_tokens=config.rollout.max_tokens,
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            seed=seed_of("sample", config.seed, step, count, *([attempt] if attempt else [])),
            first=sum(wanted == count for wanted in counts[: share.start]),
        )
        for place, completions in stream(engine, [problems[index].prompt_ids for index in chosen], count, sampling):
            yield chosen[place], completions


def _submit_finished(
    problem: EncodedProblem, completions: Sequence[Completion], texts: Sequence[str], submit: Submit
) -> Pending:
    """Have those verified that ended by themselves."""
    finished = [text for completion, text in zip(completions, texts, strict=True) if completion.finished]
    return submit([(text, problem.problem.answer) for text in finished])
