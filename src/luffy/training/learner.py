"""The learner: groups in, a better policy out.

What an optimizer step learns from is divided by one normaliser over all its rows, whatever micro-batches they are
computed in: K micro-batches equal one batch exactly, for reinforcement and for supervised learning alike. Means of
means over micro-batches, a published defect of SFT baselines (arXiv 2604.23747), cannot arise.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from luffy.algorithm import METHODS, Phase, policy_loss, supervised_loss, token_weights, truncated_importance_weights
from luffy.algorithm.loss import Normalization
from luffy.config import Config
from luffy.errors import RunError
from luffy.policy import LoadedModel, Loss, MicroBatch, Scorer, TokenScores, padding_fraction, pick_autocast
from luffy.training.schedule import learning_rate
from luffy.types import Group, Rollout

Metrics = dict[str, float]
BAD_STEPS_IN_A_ROW = 3


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


class Learner:
    """Holds the policy, its optimizer, and takes optimizer steps."""

    def __init__(self, loaded: LoadedModel, config: Config) -> None:
        """The optimizer is made anew by `start_phase`."""
        self.config = config
        self.method = METHODS[config.method]
        self.policy = loaded.model
        self.accelerator = Accelerator(cpu=loaded.model.device.type == "cpu")
        self.autocast = pick_autocast(config.policy, loaded.model)
        self.scorer = self._scorer(loaded)
        self.reference = self._reference(loaded) if config.objective.kl_coefficient else None
        self.tokens_trained = 0
        self.skipped_in_a_row = 0
        self.phase_begin = -1  # no phase has begun

    def start_phase(self, phase: Phase, begin: int, steps: int) -> None:
        """Begin a phase of `steps` steps, after `begin` steps of other phases, with a fresh optimizer and schedule."""
        settings = self.config.optimizer
        self.peak = settings.learning_rate if phase == "rl" else self.config.sft.learning_rate
        self.phase, self.phase_begin, self.phase_steps = phase, begin, steps
        optimizer = torch.optim.AdamW(
            [parameter for parameter in self.policy.parameters() if parameter.requires_grad],
            lr=self.peak,
            betas=(settings.beta1, settings.beta2),
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.module, self.optimizer = self.accelerator.prepare(self.scorer, optimizer)

    def update(self, groups: Sequence[Group], step: int) -> Metrics:
        """Reinforcement: learn from groups whose advantages are assigned. step: from 0 within the phase."""
        count = self.config.updates_per_step
        batches = [
            self._reinforcement_rows(groups[len(groups) * k // count : len(groups) * (k + 1) // count])
            for k in range(count)
        ]
        if count > 1:
            self._remember_old_logprobs([row for batch in batches for row in batch])
        return self._steps(batches, step)

    def imitate(self, traces: Sequence[Rollout], step: int) -> Metrics:
        """Supervised learning: every token of the traces weighs the same. step: from 0 within the phase."""
        return self._steps([self._supervised_rows(traces, coefficient=1.0)], step)

    # -- which rows an optimizer step learns from, and with which weights

    def _reinforcement_rows(self, groups: Sequence[Group]) -> list[Row]:
        members = [pair for group in groups for pair in zip(group.rollouts, group.advantages, strict=True)]
        supervised = self.method.traces == "supervised"
        reinforced = [(rollout, advantage) for rollout, advantage in members if not (supervised and rollout.off_policy)]
        weights = self._weights([rollout for rollout, _ in reinforced], self.config.objective.normalization)
        rows = [
            Row(rollout, advantage, weight)
            for (rollout, advantage), weight in zip(reinforced, weights, strict=True)
            if self._contributes(advantage)
        ]
        if supervised:
            traces = [rollout for rollout, _ in members if rollout.off_policy]
            rows += self._supervised_rows(traces, self.config.objective.sft_coefficient)
        return rows

    def _contributes(self, advantage: float) -> bool:
        """Without entropy bonus and KL term, a rollout of advantage 0 has gradient 0: it need not be computed."""
        objective = self.config.objective
        return advantage != 0 or objective.entropy_coefficient > 0 or objective.kl_coefficient > 0

    def _supervised_rows(self, traces: Sequence[Rollout], coefficient: float) -> list[Row]:
        weights = self._weights(traces, "token")
        return [
            Row(trace, 0.0, coefficient * weight, supervised=True)
            for trace, weight in zip(traces, weights, strict=True)
        ]

    def _weights(self, rollouts: Sequence[Rollout], normalization: Normalization) -> list[float]:
        """1/Z for the tokens of each rollout, over all of them."""
        if not rollouts:
            return []
        lengths = torch.tensor([len(rollout.completion_ids) for rollout in rollouts])
        mask = torch.arange(int(lengths.max())) < lengths[:, None]
        limit = self.config.rollout.max_tokens
        weights = token_weights(mask.double(), normalization=normalization, max_length=limit)
        return [float(weight) for weight in weights.amax(dim=1)]

    # -- optimizer steps

    def _steps(self, batches: Sequence[list[Row]], step: int) -> Metrics:
        started, tokens_before = time.perf_counter(), self.tokens_trained
        totals: dict[str, float] = defaultdict(float)
        for rows in batches:
            for name, value in self._optimizer_step(rows, step).items():
                totals[name] += value
        metrics = _summarise(totals, len(batches))
        if self.tokens_trained > tokens_before:
            seconds = time.perf_counter() - started
            metrics["perf/tokens_per_second"] = (self.tokens_trained - tokens_before) / seconds
        metrics["optimizer/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        return metrics

    def _optimizer_step(self, rows: Sequence[Row], step: int) -> dict[str, float]:
        """One optimizer step on all rows, in micro-batches. Returns sums over its tokens."""
        self.policy.train(self.config.policy.gradient_checkpointing)
        totals: dict[str, float] = defaultdict(float)
        micro_batches = self._micro_batches(rows)
        for batch in micro_batches:
            loss, stats = self._loss([rows[index] for index in batch.rows])
            self.accelerator.backward(loss)
            totals["loss"] += loss.item()
            for name, value in stats.items():
                totals[name] += value
        self.tokens_trained += sum(row.length for row in rows)
        self.policy.eval()
        applied = self._apply_gradient(step, totals["loss"])
        measured = {} if applied["skipped"] else totals  # nothing that is not finite gets into the metrics
        return {**measured, **applied, "padding_fraction": padding_fraction(micro_batches)}

    def _micro_batches(self, rows: Sequence[Row]) -> list[MicroBatch]:
        prompts, completions = _texts(rows)
        return self.scorer.micro_batches(prompts, completions, self.config.policy.token_budget) if rows else []

    def _apply_gradient(self, step: int, loss: float) -> dict[str, float]:
        settings = self.config.optimizer
        sft = self.config.sft
        schedule, warmup = (
            (settings.schedule, settings.warmup_steps) if self.phase == "rl" else (sft.schedule, sft.warmup_steps)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                step, peak=self.peak, schedule=schedule, warmup_steps=warmup, steps=self.phase_steps
            )
        for parameter in self.policy.parameters():  # no row may have contributed: a gradient of zero, not of None
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), settings.max_gradient_norm))
        finite = math.isfinite(norm) and math.isfinite(loss)
        if finite:
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= BAD_STEPS_IN_A_ROW:
            raise RunError(
                f"loss or gradient was not finite in {BAD_STEPS_IN_A_ROW} updates in a row, so the run stops. "
                "Lower optimizer.learning_rate, or look at the last rollouts."
            )
        return {"gradient_norm": norm, "skipped": 0.0} if finite else {"skipped": 1.0}

    # -- the loss of a micro-batch

    def _loss(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, float]]:
        """The loss, and sums over its tokens. It is computed chunk by chunk: it is a sum over tokens."""
        table = _table(rows, self.policy.device)
        reference = self._reference_logprobs(rows)
        totals: dict[str, float] = defaultdict(float)

        def loss_of_chunk(scores: TokenScores, part: slice) -> Tensor:
            chunk = table.part(part)
            loss, stats = self._chunk_loss(scores, chunk, None if reference is None else reference[part])
            for name, value in (stats | _observed(chunk, scores.logprobs.detach())).items():
                totals[name] += value
            return loss

        loss = self._score(rows, loss=loss_of_chunk).loss
        assert loss is not None
        return loss, totals

    def _chunk_loss(
        self, scores: TokenScores, chunk: TokenTable, reference: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        old, importance = self._behavior(chunk, scores.logprobs.detach())
        objective = self.config.objective
        loss, stats = policy_loss(
            scores.logprobs,
            old.to(scores.logprobs),
            chunk.advantage.to(scores.logprobs),
            chunk.off_policy,
            ~chunk.supervised,
            shaping=objective.shaping or self.method.shaping,
            sampled_shaping=self.method.sampled_shaping,
            gamma=objective.gamma,
            exponent=objective.exponent,
            clip_range=objective.clip_range if self.method.clip else None,
            normalization=objective.normalization,
            max_length=self.config.rollout.max_tokens,
            weights=chunk.weight.to(scores.logprobs),
            entropy=scores.entropy if objective.entropy_coefficient else None,
            entropy_coefficient=objective.entropy_coefficient,
            reference_logprobs=reference,
            kl_coefficient=objective.kl_coefficient,
            importance_weights=importance,
        )
        if chunk.supervised.any():
            loss = loss + supervised_loss(scores.logprobs, chunk.supervised, weights=chunk.weight.to(scores.logprobs))
        return loss, stats

    def _score(
        self,
        rows: Sequence[Row],
        scorer: Any = None,
        *,
        entropy_gradient: bool | None = None,
        loss: Loss | None = None,
    ) -> TokenScores:
        wanted = self.config.objective.entropy_coefficient > 0 if entropy_gradient is None else entropy_gradient
        scores: TokenScores = (scorer or self.module)(
            *_texts(rows),
            temperature=1.0 if self.phase == "sft" else self.config.rollout.temperature,
            entropy_gradient=wanted,
            loss=loss,
        )
        return scores

    def _behavior(self, chunk: TokenTable, current: Tensor) -> tuple[Tensor, Tensor | None]:
        """Log-probs [tokens] of the policy that wrote each token, and truncated importance weights if asked for.

        With one update a batch, the sampling policy is the current one: its log-probs are the detached current ones,
        free of the engine's rounding. With several, those of the engine, or of a pass before the first update.
        """
        engine = chunk.engine.to(current)
        cap = self.config.objective.importance_cap
        if self.config.updates_per_step == 1:
            sampled = current
        elif chunk.old is not None:
            sampled = chunk.old.to(current)
        else:
            sampled = engine
        weights = None if cap is None else truncated_importance_weights(sampled, engine, cap)
        return torch.where(chunk.off_policy, engine, sampled), weights

    @torch.no_grad()
    def _remember_old_logprobs(self, rows: Sequence[Row]) -> None:
        """One pass before the first of several updates, where truncated importance sampling needs it."""
        if self.config.objective.importance_cap is None:
            return
        for micro_batch in self._micro_batches(rows):
            batch = [rows[index] for index in micro_batch.rows]
            logprobs = self._score(batch, entropy_gradient=False).logprobs
            parts = logprobs.split([len(row.rollout.completion_ids) for row in batch])
            for row, part in zip(batch, parts, strict=True):
                row.old_logprobs = part

    @torch.no_grad()
    def _reference_logprobs(self, rows: Sequence[Row]) -> Tensor | None:
        if self.reference is None:
            return None
        return self._score(rows, self.reference, entropy_gradient=False).logprobs

    # -- construction

    def _scorer(self, loaded: LoadedModel) -> Scorer:
        return Scorer(
            loaded.model,
            pad_id=loaded.pad_id,
            chunk_elements=self.config.policy.chunk_elements,
            autocast=self.autocast,
        )

    def _reference(self, loaded: LoadedModel) -> Scorer:
        frozen = copy.deepcopy(loaded.model).requires_grad_(False).eval()
        return self._scorer(replace(loaded, model=frozen))


def _texts(rows: Sequence[Row]) -> tuple[list[Sequence[int]], list[Sequence[int]]]:
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


def _table(rows: Sequence[Row], device: torch.device) -> TokenTable:
    lengths = torch.tensor([len(row.rollout.completion_ids) for row in rows])

    def per_token(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=dtype).repeat_interleave(lengths).to(device)

    remembered = [row.old_logprobs for row in rows if row.old_logprobs is not None]
    return TokenTable(
        advantage=per_token([row.advantage for row in rows]),
        weight=per_token([row.weight for row in rows]),
        off_policy=per_token([row.rollout.off_policy for row in rows], torch.bool),
        supervised=per_token([row.supervised for row in rows], torch.bool),
        engine=torch.tensor([value for row in rows for value in row.rollout.behavior_logprobs], dtype=torch.float64).to(
            device
        ),
        old=torch.cat(remembered) if remembered else None,
    )


def _observed(chunk: TokenTable, current: Tensor) -> dict[str, float]:
    """Sums over tokens that the metrics are made of, beside those of the loss."""
    gap = (current - chunk.engine.to(current)).abs()[~chunk.off_policy]
    return {
        "observed_sampled_tokens": float(gap.numel()),
        "engine_gap": float(gap.sum()),
        "observed_trace_tokens": float(chunk.off_policy.sum()),
        "trace_probability_seen": float(current[chunk.off_policy].exp().sum()),
    }


def _summarise(totals: dict[str, float], updates: int) -> Metrics:
    """Sums over the optimizer steps of a batch as metrics; what was not measured is absent."""
    metrics = {
        "update/skipped": totals["skipped"],
        "perf/padding_fraction": totals["padding_fraction"] / updates,
    }
    applied = updates - totals["skipped"]
    if applied:
        metrics["update/loss"] = totals["loss"] / applied
        metrics["update/gradient_norm"] = totals["gradient_norm"] / applied
    if totals.get("observed_trace_tokens"):
        metrics["guidance/trace_probability"] = totals["trace_probability_seen"] / totals["observed_trace_tokens"]
    if totals.get("observed_sampled_tokens"):
        metrics["policy/engine_gap"] = totals["engine_gap"] / totals["observed_sampled_tokens"]
        metrics["update/clipped"] = totals.get("clipped_tokens", 0.0) / totals["observed_sampled_tokens"]
    return metrics
