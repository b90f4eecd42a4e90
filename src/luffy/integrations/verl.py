"""This project's loss as a policy loss of verl: `policy_loss_fn(old_log_prob, log_prob, ...) -> (loss, metrics)`.

    VERL_USE_EXTERNAL_MODULES=my_losses ... actor_rollout_ref.actor.policy_loss.loss_mode=luffy

where my_losses.py, importable in every worker, says

    from luffy.integrations.verl import register

    register("luffy")

verl hands its loss no mask of the tokens that a teacher wrote, so the mask travels in `old_log_prob`: `mark_traces`
puts a positive number there, which no log-probability is. That is to be called after verl has computed `old_log_probs`
and before the update. How traces become members of a batch is left to the host. Written for verl 0.9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from luffy.algorithm import METHODS, policy_loss
from luffy.integrations import policy_loss_methods

PolicyLoss = Callable[..., tuple[Tensor, dict[str, float]]]


def mark_traces(old_log_prob: Tensor, off_policy: Tensor, teacher_log_prob: Tensor | None = None) -> Tensor:
    """`old_log_prob` with 1 - log pi_phi, which is at least 1, on the tokens that a teacher wrote.

    old_log_prob: [rows, tokens]. off_policy: bool [rows], or [rows, tokens] where a row is a trace in part only.
    teacher_log_prob: [rows, tokens], log pi_phi; None: pi_phi = 1, as in the paper.
    """
    is_trace = off_policy if off_policy.ndim == old_log_prob.ndim else off_policy[:, None]
    mark = 1.0 if teacher_log_prob is None else 1 - teacher_log_prob.to(old_log_prob)
    return torch.where(is_trace, mark, old_log_prob)


def read_marks(old_log_prob: Tensor) -> tuple[Tensor, Tensor]:
    """What `mark_traces` was given: log-probs of the policy that wrote each token, and which tokens are a teacher's."""
    off_policy = old_log_prob > 0
    return torch.where(off_policy, 1 - old_log_prob, old_log_prob), off_policy


def make_policy_loss(method: str = "luffy", *, gamma: float = 0.1) -> PolicyLoss:
    """A policy loss with verl's signature. method: a name in `METHODS` without supervised term; gamma: of its shaping.

    A method that clips takes epsilon from verl's `clip_ratio`. Raises ValueError for another method.
    """
    known = policy_loss_methods()
    if method not in known:
        raise ValueError(f"method is {method!r}; as a policy loss there are: {', '.join(known)}")
    record = METHODS[method]

    def luffy_policy_loss(
        old_log_prob: Tensor,
        log_prob: Tensor,
        advantages: Tensor,
        response_mask: Tensor,
        loss_agg_mode: str = "token-mean",
        config: Any = None,
        rollout_is_weights: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, float]]:
        """All tensors [rows, tokens]; metrics are sums over the tokens of the micro-batch."""
        behavior, off_policy = read_marks(old_log_prob)
        batch = getattr(config, "global_batch_info", None) or {}
        loss, sums = policy_loss(
            log_prob,
            behavior.to(log_prob),
            advantages.to(log_prob),
            off_policy,
            response_mask,
            shaping=record.shaping,
            sampled_shaping=record.sampled_shaping,
            gamma=gamma,
            clip_range=config.clip_ratio if record.clip else None,
            normalization="token",  # not used: the weights are given
            max_length=1,
            weights=share_of_loss(response_mask.to(log_prob.dtype), loss_agg_mode, batch),
            importance_weights=rollout_is_weights,
        )
        return loss, {f"luffy/{name}": value for name, value in sums.items()}

    return luffy_policy_loss


def share_of_loss(mask: Tensor, loss_agg_mode: str, batch: Mapping[str, Any]) -> Tensor:
    """The weight [rows, tokens] of each token, as verl's `loss_agg_mode` says.

    batch: `global_batch_info` of verl's actor: number of tokens and sequences over all micro-batches and processes,
    number of processes (their gradients are averaged, hence the factor), longest response. What it lacks is taken from
    the mask. Raises ValueError for a mode that is not known.
    """
    lengths = mask.sum(dim=-1, keepdim=True)
    processes = float(batch.get("dp_size") or 1)
    tokens = batch.get("batch_num_tokens") or lengths.sum().clamp(min=1)
    sequences = batch.get("global_batch_size") or (lengths > 0).sum().clamp(min=1)
    longest = batch.get("loss_scale_factor") or mask.shape[-1]
    divisors: dict[str, Any] = {
        "token-mean": tokens,
        "token-sum": 1,
        "seq-mean-token-sum": sequences,
        "seq-mean-token-sum-norm": sequences * longest,
        "seq-mean-token-mean": sequences * lengths.clamp(min=1),
    }
    if loss_agg_mode not in divisors:
        raise ValueError(f"loss_agg_mode is {loss_agg_mode!r}; known: {', '.join(divisors)}")
    weights: Tensor = mask * processes / divisors[loss_agg_mode]
    return weights


def register(name: str = "luffy", method: str = "luffy", *, gamma: float = 0.1) -> PolicyLoss:
    """Put the loss into verl's register, under the name that `policy_loss.loss_mode` then chooses it by. Returns it."""
    from verl.trainer.ppo.core_algos import register_policy_loss

    loss = make_policy_loss(method, gamma=gamma)
    register_policy_loss(name)(loss)
    return loss
