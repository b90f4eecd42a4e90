"""The rows that an update computes, and what is known of each of their tokens before it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luffy.algorithm import METHODS, token_weights, truncated_importance_weights
from luffy.algorithm.loss import Normalization
from luffy.config import Config
from luffy.types import Group, Rollout


@dataclass(slots=True)
class Row:
    """A rollout as the update needs it: its advantage and its share of the loss."""

    rollout: Rollout
    advantage: float
    weight: float  # 1/Z of each of its tokens
    supervised: bool = False  # trained by likelihood rather than by advantage
    old_logprobs: Tensor | None = None  # [tokens], of the policy before the first of several updates

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return len(self.rollout.prompt_ids) + len(self.rollout.completion_ids)


def reinforcement_rows(groups: Sequence[Group], config: Config) -> list[Row]:
    """Of groups whose advantages are assigned; traces that the method imitates come last."""
    members = [pair for group in groups for pair in zip(group.rollouts, group.advantages, strict=True)]
    supervised = METHODS[config.method].traces == "supervised"
    reinforced = [(rollout, advantage) for rollout, advantage in members if not (supervised and rollout.off_policy)]
    weights = token_shares([rollout for rollout, _ in reinforced], config, config.objective.normalization)
    rows = [
        Row(rollout, advantage, weight)
        for (rollout, advantage), weight in zip(reinforced, weights, strict=True)
        if contributes(advantage, config)
    ]
    if supervised:
        traces = [rollout for rollout, _ in members if rollout.off_policy]
        rows += supervised_rows(traces, config, config.objective.sft_coefficient)
    return rows


def supervised_rows(traces: Sequence[Rollout], config: Config, coefficient: float) -> list[Row]:
    """Of traces that are imitated, every token weighing the same."""
    weights = token_shares(traces, config, "token")
    return [
        Row(trace, 0.0, coefficient * weight, supervised=True) for trace, weight in zip(traces, weights, strict=True)
    ]


def contributes(advantage: float, config: Config) -> bool:
    """Without entropy bonus and KL term, a rollout of advantage 0 has gradient 0: it need not be computed."""
    objective = config.objective
    return advantage != 0 or objective.entropy_coefficient > 0 or objective.kl_coefficient > 0


def token_shares(rollouts: Sequence[Rollout], config: Config, normalization: Normalization) -> list[float]:
    """1/Z for the tokens of each rollout, over all of them."""
    if not rollouts:
        return []
    lengths = torch.tensor([len(rollout.completion_ids) for rollout in rollouts])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    weights = token_weights(mask.double(), normalization=normalization, max_length=config.rollout.max_tokens)
    return [float(weight) for weight in weights.amax(dim=1)]


def texts(rows: Sequence[Row]) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
    """Prompts and completions."""
    return [row.rollout.prompt_ids for row in rows], [row.rollout.completion_ids for row in rows]


@dataclass(frozen=True, slots=True)
class TokenTable:
    """What is known of each completion token before it is scored. All [tokens], the rows one after the other."""

    advantage: Tensor
    weight: Tensor  # 1/Z
    off_policy: Tensor  # bool
    supervised: Tensor  # bool
    engine: Tensor  # log-prob of the policy that wrote it, as recorded
    old: Tensor | None  # log-prob before the first of several updates

    def part(self, part: slice) -> TokenTable:
        """Some of the tokens."""
        old = None if self.old is None else self.old[part]
        return TokenTable(
            self.advantage[part],
            self.weight[part],
            self.off_policy[part],
            self.supervised[part],
            self.engine[part],
            old,
        )

    @classmethod
    def of(cls, rows: Sequence[Row], device: torch.device) -> TokenTable:
        """The table of all rows."""
        lengths = torch.tensor([len(row.rollout.completion_ids) for row in rows])

        def per_token(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
            return torch.tensor(values, dtype=dtype).repeat_interleave(lengths).to(device)

        remembered = [row.old_logprobs for row in rows if row.old_logprobs is not None]
        return cls(
            advantage=per_token([row.advantage for row in rows]),
            weight=per_token([row.weight for row in rows]),
            off_policy=per_token([row.rollout.off_policy for row in rows], torch.bool),
            supervised=per_token([row.supervised for row in rows], torch.bool),
            engine=torch.tensor(
                [value for row in rows for value in row.rollout.behavior_logprobs], dtype=torch.float64
            ).to(device),
            old=torch.cat(remembered) if remembered else None,
        )

    def observed(self, current: Tensor) -> dict[str, float]:
        """Sums over tokens that the metrics are made of, beside those of the loss. current: [tokens], log-probs now."""
        gap = (current - self.engine.to(current)).abs()[~self.off_policy]
        return {
            "observed_sampled_tokens": float(gap.numel()),
            "engine_gap": float(gap.sum()),
            "observed_trace_tokens": float(self.off_policy.sum()),
            "trace_probability_seen": float(current[self.off_policy].exp().sum()),
        }

    def behavior(self, current: Tensor, config: Config) -> tuple[Tensor, Tensor | None]:
        """Log-probs [tokens] of the policy that wrote each token, and truncated importance weights if asked for.

        With one update a batch, the sampling policy is the current one: its log-probs are the detached current ones,
        free of the engine's rounding. With several, those of the engine, or of a pass before the first update.
        """
        engine = self.engine.to(current)
        cap = config.objective.importance_cap
        if config.updates_per_step == 1:
            sampled = current
        elif self.old is not None:
            sampled = self.old.to(current)
        else:
            sampled = engine
        weights = None if cap is None else truncated_importance_weights(sampled, engine, cap)
        return torch.where(self.off_policy, engine, sampled), weights
