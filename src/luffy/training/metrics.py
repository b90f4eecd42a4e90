"""What a step is described by: `area/name` to a number; a metric that does not exist for a method is absent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luffy.types import Group

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def group_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Rewards, guidance and completions of a step's groups.

    `policy/entropy` is the mean of -log-prob over the sampled tokens, in nats a token: an unbiased estimate of the
    policy's entropy at the sampling temperature that costs nothing. It is absent where they are not finite.
    """
    own = [rollout for group in groups for rollout in group.rollouts if not rollout.off_policy]
    traces = [
        (rollout, advantage)
        for group in groups
        for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
        if rollout.off_policy
    ]
    rewards = [[rollout.reward for rollout in group.rollouts if not rollout.off_policy] for group in groups]
    logprobs = [value for rollout in own for value in rollout.behavior_logprobs]
    metrics = {
        "reward/on_policy": _mean([rollout.reward for rollout in own]),
        "groups/all_failed": _mean([not any(group) for group in rewards]),
        "groups/all_solved": _mean([all(group) for group in rewards]),
        "completion/length": _mean([len(rollout.completion_ids) for rollout in own]),
        "completion/truncated": _mean([not rollout.finished for rollout in own]),
        "verifier/failures": float(sum(rollout.failure is not None for rollout in own)),
    }
    if all(map(math.isfinite, logprobs)):
        metrics["policy/entropy"] = -_mean(logprobs)
    if traces:
        metrics["reward/traces"] = _mean([rollout.reward for rollout, _ in traces])
        metrics["guidance/trace_advantage"] = _mean([advantage for _, advantage in traces])
    return metrics


def rollout_records(groups: Sequence[Group], tokenizer: PreTrainedTokenizerBase, detailed: int = 4) -> list[Any]:
    """A step's groups as JSON: the first `detailed` with tokens and their log-probs."""
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
                | (_token_details(rollout, tokenizer) if index < detailed else {})
                for rollout, advantage in zip(group.rollouts, group.advantages, strict=True)
            ],
        }
        for index, group in enumerate(groups)
    ]


def _token_details(rollout: Any, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    details = {"tokens": [tokenizer.decode([token]) for token in rollout.completion_ids]}
    if not rollout.off_policy:
        details["logprobs"] = [round(value, 4) if math.isfinite(value) else None for value in rollout.behavior_logprobs]
    return details


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
