"""The learner: groups in, a better policy out.

What an optimizer step learns from is divided by one normaliser over all its rows, whatever micro-batches they are
computed in: K micro-batches equal one batch exactly, for reinforcement and for supervised learning alike. Means of
means over micro-batches, a published defect of SFT baselines (arXiv 2604.23747), cannot arise.

Of several processes each knows all rows and computes its share; gradients and sums are added up over them. One with
fewer micro-batches than another computes blank ones, whose gradient is zero, so that all meet where gradients are sent.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from luffy.algorithm import METHODS, Phase, policy_loss, supervised_loss
from luffy.config import Config
from luffy.errors import RunError
from luffy.policy import (
    LoadedModel,
    Loss,
    MicroBatch,
    Scorer,
    TokenScores,
    padding_fraction,
    pick_autocast,
)
from luffy.policy.adapters import adapter_disabled, has_adapter, plain_copy
from luffy.policy.allocator import keep_freed_memory
from luffy.policy.precision import Autocast
from luffy.training.dealing import deal, rounds
from luffy.training.draw import seed_of
from luffy.training.rows import Row, TokenTable, reinforcement_rows, supervised_rows, texts
from luffy.training.schedule import learning_rate
from luffy.training.world import ALONE, World
from luffy.training.zero import wrapper_of
from luffy.types import Group, Rollout

Metrics = dict[str, float]
BAD_STEPS_IN_A_ROW = 3


class Learner:
    """Holds the policy, its optimizer, and takes optimizer steps."""

    def __init__(self, loaded: LoadedModel, config: Config, world: World = ALONE) -> None:
        """The optimizer is made anew by `start_phase`."""
        self.config, self.world = config, world
        self.method = METHODS[config.method]
        self.policy = loaded.model
        self.device = loaded.model.device  # what computes; the weights may lie elsewhere once they are split
        self.accelerator = Accelerator(cpu=self.device.type == "cpu")
        if self.device.type == "cpu":
            keep_freed_memory()
        self.autocast = pick_autocast(config.policy, loaded.model)
        self.scorer = _scorer(loaded, config, self.autocast)
        penalised = config.objective.kl_coefficient > 0
        self.reference = _reference(self.scorer, loaded, config, self.autocast) if penalised else None
        self.wrapper = wrapper_of(self.scorer, self.reference, config, world)
        self.tokens_trained = 0
        self.skipped_in_a_row = 0
        self.phase_begin = -1  # no phase has begun

    def start_phase(self, phase: Phase, begin: int, steps: int) -> None:
        """Begin a phase of `steps` steps, after `begin` steps of other phases, with a fresh optimizer and schedule."""
        self.peak = self.config.optimizer.learning_rate if phase == "rl" else self.config.sft.learning_rate
        self.phase, self.phase_begin, self.phase_steps = phase, begin, steps
        self.wrapper.wrap(self.accelerator)
        self.optimizer = self.wrapper.new_optimizer(self.peak)

    def update(self, groups: Sequence[Group], step: int) -> Metrics:
        """Reinforcement: learn from groups whose advantages are assigned. step: from 0 within the phase."""
        count = self.config.updates_per_step
        batches = [
            reinforcement_rows(groups[len(groups) * k // count : len(groups) * (k + 1) // count], self.config)
            for k in range(count)
        ]
        if count > 1:
            for rows in batches:  # one after the other, as they will be dealt to the processes
                self._remember_old_logprobs(rows)
        return self._steps(batches, step)

    def imitate(self, traces: Sequence[Rollout], step: int) -> Metrics:
        """Supervised learning: every token of the traces weighs the same. step: from 0 within the phase."""
        return self._steps([supervised_rows(traces, self.config, coefficient=1.0)], step)

    # -- optimizer steps

    def _steps(self, batches: Sequence[list[Row]], step: int) -> Metrics:
        started, tokens_before = time.perf_counter(), self.tokens_trained
        torch.manual_seed(seed_of("update", self.config.seed, step))  # of dropout, in a model that has it
        totals: dict[str, float] = defaultdict(float)
        for rows in batches:
            with self.world.lost_are_named():
                step_totals = self._optimizer_step(rows, step)
            for name, value in step_totals.items():
                totals[name] += value
        metrics = _summarise(totals, len(batches))
        if self.tokens_trained > tokens_before:
            seconds = time.perf_counter() - started
            metrics["perf/tokens_per_second"] = (self.tokens_trained - tokens_before) / seconds
        metrics["optimizer/learning_rate"] = self.optimizer.param_groups[0]["lr"]
        return metrics

    def _optimizer_step(self, rows: Sequence[Row], step: int) -> dict[str, float]:
        """One optimizer step on all rows, in micro-batches. Returns sums over its tokens."""
        # accelerate keeps these two for the whole process; where another trainer or a launcher has set them, losses are
        # divided and the optimizer skips its steps without a word
        self.accelerator.gradient_accumulation_steps, self.accelerator.sync_gradients = 1, True
        self.policy.train(self.config.policy.gradient_checkpointing or self.config.adapter.dropout > 0)
        own: dict[str, float] = defaultdict(float)
        dealt = self._deal(rows)
        for one in rounds(rows, dealt, self.world.rank):
            with self.wrapper.sums(last=one.last):
                loss, stats = self._loss(one.rows)
                self.wrapper.backward(loss, stats["engine_gap"])
            if not one.blank:
                own["loss"] += loss.item()
                for name, value in stats.items():
                    own[name] += value
        totals = defaultdict(float, self.world.sums(own))
        self.tokens_trained += sum(row.length for row in rows)
        self.policy.eval()
        applied = self._apply_gradient(step, totals["loss"] + totals["engine_gap"])
        measured = {} if applied["skipped"] else totals  # nothing that is not finite gets into the metrics
        everywhere = [batch for share in dealt for batch in share]
        return {**measured, **applied, "padding_fraction": padding_fraction(everywhere)}

    def _deal(self, rows: Sequence[Row]) -> list[list[MicroBatch]]:
        return deal(rows, self.scorer, self.world.size, self.config.policy.token_budget)

    def _apply_gradient(self, step: int, numbers: float) -> dict[str, float]:
        """Take the step, unless its gradient is not finite, or `numbers`: the loss and what it was made of."""
        settings = self.config.optimizer
        sft = self.config.sft
        schedule, warmup = (
            (settings.schedule, settings.warmup_steps) if self.phase == "rl" else (sft.schedule, sft.warmup_steps)
        )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(
                step, peak=self.peak, schedule=schedule, warmup_steps=warmup, steps=self.phase_steps
            )
        most = settings.max_gradient_norm
        norm = self.wrapper.step(self.optimizer, most, sound=math.isfinite(numbers))
        self.skipped_in_a_row = 0 if norm is not None else self.skipped_in_a_row + 1
        if self.skipped_in_a_row >= BAD_STEPS_IN_A_ROW:
            raise RunError(
                f"loss or gradient was not finite in {BAD_STEPS_IN_A_ROW} updates in a row, so the run stops. "
                "Lower optimizer.learning_rate, or look at the last rollouts."
            )
        return {"skipped": 1.0} if norm is None else {"gradient_norm": norm, "skipped": 0.0}

    # -- the loss of a micro-batch

    def _loss(self, rows: Sequence[Row]) -> tuple[Tensor, dict[str, float]]:
        """The loss, and sums over its tokens. It is computed chunk by chunk: it is a sum over tokens."""
        table = TokenTable.of(rows, self.device)
        reference = self._reference_logprobs(rows)
        totals: dict[str, float] = defaultdict(float)

        def loss_of_chunk(scores: TokenScores, part: slice) -> Tensor:
            chunk = table.part(part)
            loss, stats = self._chunk_loss(scores, chunk, None if reference is None else reference[part])
            for name, value in (stats | chunk.observed(scores.logprobs.detach())).items():
                totals[name] += value
            return loss

        loss = self._score(rows, loss=loss_of_chunk).loss
        assert loss is not None
        return loss, totals

    def _chunk_loss(
        self, scores: TokenScores, chunk: TokenTable, reference: Tensor | None
    ) -> tuple[Tensor, dict[str, float]]:
        old, importance = chunk.behavior(scores.logprobs.detach(), self.config)
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
        scores: TokenScores = (scorer or self.wrapper.module)(
            *texts(rows),
            temperature=1.0 if self.phase == "sft" else self.config.rollout.temperature,
            entropy_gradient=wanted,
            loss=loss,
        )
        return scores

    @torch.no_grad()
    def _remember_old_logprobs(self, rows: Sequence[Row]) -> None:
        """One pass before the first of several updates, where truncated importance sampling needs it."""
        if self.config.objective.importance_cap is None:
            return
        for one in rounds(rows, self._deal(rows), self.world.rank):
            batch = one.rows
            logprobs = self._score(batch, entropy_gradient=False).logprobs
            parts = logprobs.split([len(row.rollout.completion_ids) for row in batch])
            for row, part in zip(batch, parts, strict=True):
                row.old_logprobs = part

    @torch.no_grad()
    def _reference_logprobs(self, rows: Sequence[Row]) -> Tensor | None:
        if self.reference is None:
            return None
        other = self.reference if self.reference is not self.scorer else None
        with adapter_disabled(self.reference.model):
            return self._score(rows, other, entropy_gradient=False).logprobs


def _scorer(loaded: LoadedModel, config: Config, autocast: Autocast) -> Scorer:
    return Scorer(loaded.model, pad_id=loaded.pad_id, chunk_elements=config.policy.chunk_elements, autocast=autocast)


def _reference(scorer: Scorer, loaded: LoadedModel, config: Config, autocast: Autocast) -> Scorer:
    """A scorer on a copy that stays as it is; under an adapter the policy's own, as the base under it does."""
    if has_adapter(loaded.model):
        return scorer
    return _scorer(replace(loaded, model=plain_copy(loaded.model)), config, autocast)


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
