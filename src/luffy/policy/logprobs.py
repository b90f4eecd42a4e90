"""Log-probabilities of completion tokens, and the entropy beside them, without the whole logits.

Logits are [tokens, vocabulary]: 4,096 tokens of a 150,000-token vocabulary are 2.4 GB in float32, and softmax and
backward multiply that. Here the last hidden states are cut into chunks of tokens, and a chunk's logits exist only while
it is computed. Given the loss as a function of a chunk's scores, its gradient is taken at once; otherwise the logits
are computed again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CACHED_ELEMENTS = 2**18  # logits whose probabilities are computed at once on a CPU: 1 MB in float32
Head = Callable[[Tensor], Tensor]  # hidden states [tokens, width] -> logits [tokens, vocabulary]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What the policy says of completion tokens; the rows' completions one after the other."""

    logprobs: Tensor  # [tokens], natural logarithm; differentiable, unless a loss was given
    entropy: Tensor  # [tokens], nats; differentiable only if asked for
    loss: Tensor | None = None  # scalar, differentiable: the sum over chunks, where a loss was given


Loss = Callable[[TokenScores, slice], Tensor]  # scores of some tokens, and which tokens those are -> scalar


def score_hidden_states(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    *,
    temperature: float = 1.0,
    chunk_tokens: int,
    entropy_gradient: bool = False,
    loss: Loss | None = None,
    head_parameters: Sequence[Tensor] = (),
) -> TokenScores:
    """Log-probability of each target and entropy of each distribution, chunk by chunk.

    hidden: [tokens, width], the states that predict the targets. targets: [tokens]. head: hidden states to logits.
    chunk_tokens: how many tokens' logits may exist at once; it does not change the result.
    loss: a function whose sum over the chunks is wanted; its gradient with respect to hidden and `head_parameters`,
    the parameters that `head` uses, is computed here, so that no logits need be computed twice. The scores then carry
    no gradient of their own.
    """

    def score(part: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logprob, entropy = _Scores.apply(head(part), target, temperature)  # type: ignore[no-untyped-call]
        return logprob, entropy if entropy_gradient else entropy.detach()

    tokens = hidden.shape[0]
    bounds = list(pairwise([*range(0, tokens, chunk_tokens), tokens]))
    parts = [slice(begin, end) for begin, end in bounds]
    if loss is not None and torch.is_grad_enabled():
        total, logprobs, entropy = _LossOfChunks.apply(  # type: ignore[no-untyped-call]
            hidden, targets, score, loss, parts, *head_parameters
        )
        return TokenScores(logprobs, entropy, total)
    recompute = torch.is_grad_enabled() and len(parts) > 1
    scores = [
        checkpoint(score, hidden[part], targets[part], use_reentrant=False, preserve_rng_state=False)
        if recompute
        else score(hidden[part], targets[part])
        for part in parts
    ]
    logprobs, entropies = (torch.cat(one) for one in zip(*scores, strict=True))
    whole = TokenScores(logprobs, entropies)
    return whole if loss is None else TokenScores(logprobs, entropies, loss(whole, slice(0, tokens)))


class _Scores(torch.autograd.Function):
    """Log-prob of the target and entropy, [tokens] each, of logits [tokens, vocabulary], at a temperature.

    d logprob / d logits = onehot - p;   d entropy / d logits = -p (log p + entropy)

    Only the logits are kept, in the type that the head gave them, and one gradient is made: probabilities live for a
    few tokens at a time, in float32 at least, in buffers that a processor's cache holds.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(logits.dtype, torch.float32)
        logprobs, entropy, log_total = (logits.new_empty(len(logits), dtype=kind) for _ in range(3))
        for part in _few(logits):
            scaled = _scaled(logits[part], kind, temperature)
            largest = scaled.amax(dim=-1)
            shifted = scaled - largest[:, None]
            weights = shifted.exp()
            total = weights.sum(dim=-1)
            log_total[part] = largest + total.log()
            entropy[part] = total.log() - torch.linalg.vecdot(weights, shifted) / total
            logprobs[part] = shifted.gather(-1, targets[part, None]).squeeze(-1) - total.log()
        ctx.save_for_backward(logits, targets, entropy, log_total)
        ctx.temperature = temperature
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        of_logprobs, of_entropy = gradients
        logits, targets, entropy, log_total = ctx.saved_tensors
        with_entropy = bool(of_entropy.any())
        gradient = torch.empty_like(logits)
        for part in _few(logits):
            logs = _scaled(logits[part], entropy.dtype, ctx.temperature) - log_total[part, None]
            probabilities = logs.exp()
            one = probabilities * -of_logprobs[part, None]
            if with_entropy:
                surprise = probabilities.mul_(logs.add_(entropy[part, None]))
                one.addcmul_(surprise, of_entropy[part, None], value=-1)
            one.scatter_add_(-1, targets[part, None], of_logprobs[part, None])
            gradient[part] = one if ctx.temperature == 1.0 else one.div_(ctx.temperature)
        return gradient, None, None


def _few(logits: Tensor) -> list[slice]:
    """The tokens of logits [tokens, vocabulary], a few at a time on a CPU, all at once elsewhere."""
    tokens, vocabulary = logits.shape
    step = max(1, CACHED_ELEMENTS // vocabulary) if logits.device.type == "cpu" else max(1, tokens)
    return [slice(begin, begin + step) for begin in range(0, tokens, step)]


def _scaled(logits: Tensor, kind: torch.dtype, temperature: float) -> Tensor:
    widened = logits.to(kind)
    return widened if temperature == 1.0 else widened / temperature


class _LossOfChunks(torch.autograd.Function):
    """The loss summed over chunks of tokens; each chunk's gradient is taken while its logits exist."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        targets: Tensor,
        score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        loss: Loss,
        parts: Sequence[slice],
        *parameters: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        of_hidden = torch.empty_like(hidden)
        of_parameters: list[Tensor] = []
        losses, logprobs, entropies = [], [], []
        for part in parts:
            with torch.enable_grad():
                states = hidden[part].detach().requires_grad_()
                scores = TokenScores(*score(states, targets[part]))
                one = loss(scores, part)
            of_states, *of_head = torch.autograd.grad(one, (states, *parameters))
            of_hidden[part] = of_states
            if of_parameters:
                for total, more in zip(of_parameters, of_head, strict=True):
                    total.add_(more)
            else:
                of_parameters = of_head
            losses.append(one.detach())
            logprobs.append(scores.logprobs.detach())
            entropies.append(scores.entropy.detach())
        ctx.save_for_backward(of_hidden, *of_parameters)
        results = torch.stack(losses).sum(), torch.cat(logprobs), torch.cat(entropies)
        ctx.mark_non_differentiable(*results[1:])
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0]
        of_hidden, *of_parameters = (saved if bool(factor == 1) else saved * factor for saved in ctx.saved_tensors)
        return (of_hidden, None, None, None, None, *of_parameters)


def output_head(model: PreTrainedModel) -> Head:
    """The function from last hidden states to logits, with the scalings and caps that configurations name."""
    projection = model.get_output_embeddings()
    config: Any = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None)  # Granite
    factor = getattr(config, "logit_scale", None)  # Cohere
    cap = getattr(config, "final_logit_softcapping", None)  # Gemma

    def head(hidden: Tensor) -> Tensor:
        logits: Tensor = projection(hidden)
        if divisor:
            logits = logits / divisor
        if factor:
            logits = logits * factor
        return cap * torch.tanh(logits / cap) if cap else logits

    return head
