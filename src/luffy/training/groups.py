"""The steps before the update: collect groups, assign advantages.

What is sampled depends on the seed, the step and the attempt alone, never on what was sampled before: a run that is
resumed needs no generator state to continue exactly.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from luffy.algorithm import Method, group_advantages
from luffy.config import Config
from luffy.rollout import Engine, Sampling
from luffy.training.clock import Clock
from luffy.training.draw import seed_of
from luffy.types import Completion, Group, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luffy.data import EncodedProblem, EncodedTrace
    from luffy.reward import Verdict

Verify = Callable[[Sequence[tuple[str, str]]], "list[Verdict]"]


def collect_groups(
    problems: Sequence[EncodedProblem],
    *,
    engine: Engine,
    verify: Verify,
    tokenizer: PreTrainedTokenizerBase,
    method: Method,
    config: Config,
    step: int,
    clock: Clock,
    attempt: int = 0,
) -> list[Group]:
    """Sample rollouts for each problem, verify them, and let the traces join as the method says.

    attempt: how often problems of this step have been sampled before; like the step it decides what is sampled.
    A group always has `rollout.group_size` members: a problem with fewer traces than asked for gets more rollouts.
    """
    traces = [_choose_traces(problem, method, config, step) for problem in problems]
    with clock("generate"):
        counts = [config.rollout.group_size - len(chosen) for chosen in traces]
        completions = _sample(problems, counts, engine, config, step, attempt)
    texts = [[decode(completion, tokenizer) for completion in group] for group in completions]
    with clock("verify"):
        verdicts = _verify_finished(problems, completions, texts, verify)
    groups = []
    for problem, own, own_texts, own_verdicts, expert in zip(
        problems, completions, texts, verdicts, traces, strict=True
    ):
        rollouts = [
            sampled_rollout(problem, completion, text, verdict)
            for completion, text, verdict in zip(own, own_texts, own_verdicts, strict=True)
        ]
        groups.append(Group(problem.problem, rollouts + [trace_rollout(problem, trace) for trace in expert]))
    return groups


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


def _choose_traces(problem: EncodedProblem, method: Method, config: Config, step: int) -> list[EncodedTrace]:
    wanted = config.rollout.traces if method.traces != "none" else 0
    if len(problem.traces) <= wanted:
        return list(problem.traces)
    generator = random.Random(seed_of("traces", config.seed, step, problem.problem.id))
    return generator.sample(problem.traces, wanted)


def _sample(
    problems: Sequence[EncodedProblem],
    counts: Sequence[int],
    engine: Engine,
    config: Config,
    step: int,
    attempt: int,
) -> list[list[Completion]]:
    """Completions for each problem; one engine call for each number of rollouts that occurs (nearly always one)."""
    completions: list[list[Completion]] = [[] for _ in problems]
    for count in sorted(set(counts)):
        chosen = [index for index, wanted in enumerate(counts) if wanted == count]
        sampling = Sampling(
            max_tokens=config.rollout.max_tokens,
            temperature=config.rollout.temperature,
            top_p=config.rollout.top_p,
            seed=seed_of("sample", config.seed, step, count, *([attempt] if attempt else [])),
        )
        drawn = engine.generate([problems[index].prompt_ids for index in chosen], count, sampling)
        for index, group in zip(chosen, drawn, strict=True):
            completions[index] = group
    return completions


def _verify_finished(
    problems: Sequence[EncodedProblem],
    completions: Sequence[Sequence[Completion]],
    texts: Sequence[Sequence[str]],
    verify: Verify,
) -> list[list[Verdict | None]]:
    """Verdicts of the completions that ended by themselves; None for the others."""
    places = [
        (row, column) for row, group in enumerate(completions) for column, one in enumerate(group) if one.finished
    ]
    verdicts = verify([(texts[row][column], problems[row].problem.answer) for row, column in places])
    result: list[list[Verdict | None]] = [[None] * len(group) for group in completions]
    for (row, column), verdict in zip(places, verdicts, strict=True):
        result[row][column] = verdict
    return result
