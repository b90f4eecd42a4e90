"""The objective: what the update minimises.

    loss = - sum over tokens of w * [ surrogate + c_H * entropy - c_KL * KL ]        w = 1/Z

The surrogate of a trace token is f(rho) * A, that of a sampled token rho * A or PPO's clipped form of it. All tensors
are [..., tokens]; the leading axes are free, and a flat [tokens] does as well when the token weights are given. Weights
are given by a caller that splits an optimizer step into micro-batches: computed over all of its rows, they make the
losses of the micro-batches add up to the loss of the whole, exactly.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from luffy.algorithm.shaping import LOG_RATIO_RANGE, shape_log_ratio

Normalization = Literal["constant", "token", "sequence"]


def token_weights(mask: Tensor, *, normalization: Normalization, max_length: int) -> Tensor:
    """The weight 1/Z of every token; 0 where the mask is.

    mask: [..., tokens], 1 or True on tokens that count; every row (all leading axes) is one sequence.
    normalization: `constant` Z = sequences x max_length (Dr. GRPO); `token` Z = number of tokens; `sequence` Z =
    sequences x the sequence's own length. max_length: the longest completion allowed, in tokens; `constant` alone
    uses it.
    Returns [..., tokens] in the mask's precision (float32 for integers and booleans). A mask of zeros gives zeros.
    """
    counted = mask if mask.is_floating_point() else mask.float()
    lengths = counted.sum(dim=-1, keepdim=True)
    sequences = lengths.numel()
    if normalization == "constant":
        return counted / (sequences * max_length)
    if normalization == "token":
        return counted / lengths.sum().clamp(min=1)
    if normalization == "sequence":
        return counted / (sequences * lengths.clamp(min=1))
    raise ValueError(f"unknown normalization {normalization!r}; known: constant, token, sequence")


def surrogate(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    off_policy: Tensor,
    *,
    shaping: str = "none",
    sampled_shaping: str = "none",
    gamma: float = 0.1,
    exponent: float = 0.5,
    clip_range: float | None = None,
) -> Tensor:
    """What is to be maximised at each token: f(rho) * A on traces, rho * A or its clipped form on sampled tokens.

    rho = exp(logprobs - behavior_logprobs). For a trace token the behaviour policy is the teacher (0 stands for
    pi_phi = 1); for a sampled one it is the policy that sampled it, and no gradient flows into it.
    shaping: f for trace tokens; they are never clipped. sampled_shaping: other than `none`, a sampled token's ratio is
    f(p) / f(p_behavior), as in the original code. clip_range: epsilon of PPO's min(rho A, clip(rho, 1 +- eps) A).
    All tensors [..., tokens] of one shape, advantages and off_policy too. Returns that shape.
    Source: LUFFY, arXiv 2504.14945, Equations 5 and 6; PPO, arXiv 1707.06347, Equation 7.
    """
    behavior = behavior_logprobs.detach()
    log_ratio = logprobs - behavior
    shaped = shape_log_ratio(shaping, log_ratio, gamma=gamma, exponent=exponent)
    if sampled_shaping == "none":
        ratio = torch.exp(log_ratio.clamp(*LOG_RATIO_RANGE))
    else:
        constants = {"gamma": gamma, "exponent": exponent}
        ratio = shape_log_ratio(sampled_shaping, logprobs, **constants)
        ratio = ratio / shape_log_ratio(sampled_shaping, behavior, **constants)
    sampled = ratio * advantages
    if clip_range is not None:
        sampled = torch.minimum(sampled, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)
    return torch.where(off_policy, shaped * advantages, sampled)


def policy_loss(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    off_policy: Tensor,
    mask: Tensor,
    *,
    shaping: str,
    gamma: float,
    clip_range: float | None,
    normalization: Normalization,
    max_length: int,
    exponent: float = 0.5,
    sampled_shaping: str = "none",
    weights: Tensor | None = None,
    entropy: Tensor | None = None,
    entropy_coefficient: float = 0.0,
    reference_logprobs: Tensor | None = None,
    kl_coefficient: float = 0.0,
    importance_weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """The loss of rollouts with their advantages, as a scalar, and sums over its tokens.

    logprobs, behavior_logprobs, advantages, off_policy (bool), mask: [..., tokens], of one shape. What stands where the
    mask is 0 has no influence, whatever it is. See `surrogate` and `token_weights` for the options.
    weights: token weights over the whole optimizer step; None: those of this mask.
    entropy: nats [..., tokens], for the bonus. reference_logprobs: of the model the KL term keeps near; the estimator
    is r - log r - 1 with r = p_reference / p (k3), which is never negative.
    importance_weights: factors on sampled tokens that correct for an engine that samples from a slightly other policy.
    Returns (loss, sums): the sums add over micro-batches: tokens and probabilities, sampled and trace; clipped tokens.
    Raises ValueError naming the tensor whose shape differs.
    """
    tensors = {
        "behavior_logprobs": behavior_logprobs,
        "advantages": advantages,
        "off_policy": off_policy,
        "mask": mask,
        "weights": weights,
        "entropy": entropy,
        "reference_logprobs": reference_logprobs,
        "importance_weights": importance_weights,
    }
    _check_shapes(logprobs, tensors)
    inside = mask.bool()
    if weights is None:
        weights = token_weights(mask.to(logprobs.dtype), normalization=normalization, max_length=max_length)
    # Replaced before anything is computed: NaN times 0 is NaN, and so is its gradient.
    logprobs = torch.where(inside, logprobs, 0.0)
    behavior_logprobs = torch.where(inside, behavior_logprobs, 0.0)
    advantages = torch.where(inside, advantages, 0.0)
    objective = surrogate(
        logprobs,
        behavior_logprobs,
        advantages,
        off_policy,
        shaping=shaping,
        sampled_shaping=sampled_shaping,
        gamma=gamma,
        exponent=exponent,
        clip_range=clip_range,
    )
    if importance_weights is not None:
        objective = torch.where(off_policy, objective, objective * importance_weights.detach())
    if entropy is not None and entropy_coefficient:
        objective = objective + entropy_coefficient * entropy
    if reference_logprobs is not None and kl_coefficient:
        objective = objective - kl_coefficient * kl_estimate(logprobs, torch.where(inside, reference_logprobs, 0.0))
    loss = -_weighted_sum(objective, weights, inside)
    return loss, _sums(logprobs, behavior_logprobs, advantages, off_policy.bool(), inside, clip_range)


def supervised_loss(logprobs: Tensor, mask: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Negative log-likelihood; every token weighs the same, whatever sequence it belongs to.

    logprobs, mask: [..., tokens]. weights: token weights over the whole optimizer step; None: one over the tokens of
    this mask. With weights, K micro-batches equal one batch: no mean of means (arXiv 2604.23747).
    """
    _check_shapes(logprobs, {"mask": mask, "weights": weights})
    if weights is None:
        weights = token_weights(mask.to(logprobs.dtype), normalization="token", max_length=1)
    return -_weighted_sum(logprobs, weights, mask.bool())


def truncated_importance_weights(trainer_logprobs: Tensor, engine_logprobs: Tensor, cap: float) -> Tensor:
    """Weights min(p_trainer / p_engine, cap) that correct for an engine of other numerics; [...], detached."""
    return torch.exp((trainer_logprobs - engine_logprobs).detach().clamp(*LOG_RATIO_RANGE)).clamp(max=cap)


def kl_estimate(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """The KL term of each token, r - log r - 1 with r = p_reference / p (k3); of the shape of both."""
    log_ratio = (reference_logprobs - logprobs).clamp(*LOG_RATIO_RANGE)
    return torch.expm1(log_ratio) - log_ratio


def _weighted_sum(values: Tensor, weights: Tensor, inside: Tensor) -> Tensor:
    return (torch.where(inside, values, 0.0) * torch.where(inside, weights, 0.0)).sum()


@torch.no_grad()
def _sums(
    logprobs: Tensor,
    behavior_logprobs: Tensor,
    advantages: Tensor,
    off_policy: Tensor,
    inside: Tensor,
    clip_range: float | None,
) -> dict[str, float]:
    sampled, traces = inside & ~off_policy, inside & off_policy
    probabilities = torch.exp(logprobs)
    sums = {
        "sampled_tokens": float(sampled.sum()),
        "trace_tokens": float(traces.sum()),
        "sampled_probability": float(probabilities[sampled].sum()),
        "trace_probability": float(probabilities[traces].sum()),
    }
    if clip_range is not None:
        ratio = torch.exp((logprobs - behavior_logprobs).clamp(*LOG_RATIO_RANGE))
        above = (ratio > 1 + clip_range) & (advantages > 0)
        below = (ratio < 1 - clip_range) & (advantages < 0)
        sums["clipped_tokens"] = float(((above | below) & sampled).sum())
    return sums


def _check_shapes(logprobs: Tensor, tensors: dict[str, Tensor | None]) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.shape != logprobs.shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, logprobs is {list(logprobs.shape)}; they must be equal")
