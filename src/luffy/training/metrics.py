"""What a step is described by: `area/name` to a number; a metric that does not exist for a method is absent."""

from __future__ import annotations

import math
from collections.abc import Sequence

from luffy.types import Group


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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
