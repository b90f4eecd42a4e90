"""What a run shows of itself: how likely the policy finds each token of some rollouts, and of the same few traces.

Scored before the step's update, so these are the numbers that the update starts from: the ratio of a trace token, and
with it the weight that policy shaping gives it. Nothing here changes what is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from luffy.training.groups import trace_rollout
from luffy.training.plan import Step
from luffy.types import Group, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luffy.config import Config
    from luffy.data import EncodedProblem, EncodedTrace
    from luffy.training.run_folder import Folder
    from luffy.training.wrapper import Wrapper

DETAILED_GROUPS = 4  # of a saved step, that are kept token by token
WATCHED_TRACES = 4  # of the whole run, of one problem each
LONGEST_WATCHED = 1_000  # tokens of a watched trace


@dataclass(frozen=True, slots=True)
class Scored:
    """What the policy thinks of the tokens of one rollout. Both [tokens]; None where a number is not finite."""

    logprobs: list[float | None]
    entropy: list[float | None]  # nats


class Look:
    """Writes, before the update of some steps, the rollouts it learns from and how the watched traces fare."""

    def __init__(
        self,
        config: Config,
        folder: Folder,
        wrapper: Wrapper,
        tokenizer: PreTrainedTokenizerBase,
        traces: Sequence[tuple[EncodedProblem, EncodedTrace]],
    ) -> None:
        self.config, self.folder, self.wrapper, self.tokenizer = config, folder, wrapper, tokenizer
        self.watched = [(problem, trace_rollout(problem, trace)) for problem, trace in watched_traces(traces)]

    def before_update(self, step: Step, groups: Sequence[Group]) -> None:
        """Write what is due: at the first step, and every `rollouts_every` steps."""
        every = self.config.rollouts_every
        if not every or (step.number % every and step.number != 1):
            return
        scored = partial(
            score,
            self.wrapper,
            temperature=1.0 if step.phase == "sft" else self.config.rollout.temperature,
            token_budget=self.config.policy.token_budget,
        )
        if groups:
            detailed = [scored(group.rollouts) for group in groups[:DETAILED_GROUPS]]
            self.folder.write_rollouts(step.number, rollout_records(groups, self.tokenizer, detailed))
        found = scored([rollout for _, rollout in self.watched])
        records = [
            trace_record(problem, rollout, one, self.tokenizer)
            for (problem, rollout), one in zip(self.watched, found, strict=True)
        ]
        self.folder.write_traces(step.number, records)


@torch.no_grad()
def score(wrapper: Wrapper, rollouts: Sequence[Rollout], *, temperature: float, token_budget: int) -> list[Scored]:
    """Score the completions, [rollouts], in micro-batches of at most `token_budget` tokens."""
    if not rollouts:
        return []
    prompts = [rollout.prompt_ids for rollout in rollouts]
    completions = [rollout.completion_ids for rollout in rollouts]
    found: dict[int, Scored] = {}
    for batch in wrapper.scorer.micro_batches(prompts, completions, token_budget):
        chosen = [completions[index] for index in batch.rows]
        scores = wrapper.score([prompts[index] for index in batch.rows], chosen, temperature=temperature)
        lengths = [len(completion) for completion in chosen]
        columns = (scores.logprobs.float().cpu().split(lengths), scores.entropy.float().cpu().split(lengths))
        for index, logprobs, entropy in zip(batch.rows, *columns, strict=True):
            found[index] = Scored(_rounded(logprobs.tolist(), 4), _rounded(entropy.tolist(), 3))
    return [found[index] for index in range(len(rollouts))]


def watched_traces(traces: Sequence[tuple[EncodedProblem, EncodedTrace]]) -> list[tuple[EncodedProblem, EncodedTrace]]:
    """The first trace of the first few problems: the same in every run on these data, whatever its seed."""
    first: dict[str, tuple[EncodedProblem, EncodedTrace]] = {}
    for problem, trace in traces:
        if len(first) == WATCHED_TRACES:
            break
        if len(trace.token_ids) <= LONGEST_WATCHED:
            first.setdefault(problem.problem.id, (problem, trace))
    return list(first.values())


def trace_record(problem: EncodedProblem, rollout: Rollout, scored: Scored, tokenizer: PreTrainedTokenizerBase) -> Any:
    """A watched trace as JSON."""
    tokens = [tokenizer.decode([token]) for token in rollout.completion_ids]
    return {
        "problem": problem.problem.id,
        "tokens": tokens,
        "logprobs": scored.logprobs,
        "entropy": scored.entropy,
    }


def rollout_records(
    groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, scored: Sequence[Sequence[Scored]] = ()
) -> list[Any]:
    """A step's groups as JSON; those that were scored, [groups][rollouts], with tokens and what is known of each."""
    return [
        {
            "problem": {
                "id": group.problem.id,
                "prompt": group.problem.prompt
                if isinstance(group.problem.prompt, str)
                else [dict(message) for message in group.problem.prompt],
                "answer": group.problem.answer,
                "source": group.problem.source,
            },
            "rollouts": [
                {
                    "text": rollout.text,
                    "off_policy": rollout.off_policy,
                    "reward": rollout.reward,
                    "advantage": advantage,
                    "finished": rollout.finished,
                }
                | (_token_details(rollout, scored[index][place], tokenizer) if index < len(scored) else {})
                for place, (rollout, advantage) in enumerate(zip(group.rollouts, group.advantages, strict=True))
            ],
        }
        for index, group in enumerate(groups)
    ]


def _token_details(rollout: Rollout, scored: Scored, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Tokens with log-probs and entropy; `logprobs` are of the engine that sampled them, for a trace of the policy."""
    details: dict[str, Any] = {"tokens": [tokenizer.decode([token]) for token in rollout.completion_ids]}
    sampled = _rounded(rollout.behavior_logprobs, 4)
    details["logprobs"] = scored.logprobs if rollout.off_policy else sampled
    details["entropy"] = scored.entropy
    if rollout.off_policy and any(sampled):
        details["teacher_logprobs"] = sampled
    return details


def _rounded(values: Sequence[float], digits: int) -> list[float | None]:
    return [round(value, digits) if math.isfinite(value) else None for value in values]
