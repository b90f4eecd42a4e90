"""Log-probabilities of completion tokens, and the entropy beside them, without the whole logits.

Logits are [tokens, vocabulary]: 4,096 tokens of a 150,000-token vocabulary are 2.4 GB in float32, and softmax and
backward multiply that. Here the last hidden states are cut into chunks of tokens; each chunk's logits exist only
while it is computed and are computed again in the backward pass.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luffy.policy.batching import PaddedRows, pad_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

Head = Callable[[Tensor], Tensor]  # hidden states [tokens, width] -> logits [tokens, vocabulary]


@dataclass(frozen=True, slots=True)
class TokenScores:
    """What the policy says of completion tokens; the rows' completions one after the other."""

    logprobs: Tensor  # [tokens], natural logarithm, differentiable
    entropy: Tensor  # [tokens], nats; differentiable only if asked for


def score_hidden_states(
    hidden: Tensor,
    targets: Tensor,
    head: Head,
    *,
    temperature: float = 1.0,
    chunk_tokens: int,
    entropy_gradient: bool = False,
) -> TokenScores:
    """Log-probability of each target and entropy of each distribution, chunk by chunk.

    hidden: [tokens, width], the states that predict the targets. targets: [tokens]. head: hidden states to logits.
    chunk_tokens: how many tokens' logits may exist at once; it does not change the result.
    """

    def score(part: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(part).float() if part.dtype != torch.float64 else head(part)
        if temperature != 1.0:
            logits = logits / temperature
        log_total = torch.logsumexp(logits, dim=-1)
        logprob = logits.gather(-1, target[:, None]).squeeze(-1) - log_total
        with nullcontext() if entropy_gradient else torch.no_grad():
            expected = torch.linalg.vecdot(torch.exp(logits - log_total[:, None]), logits)
            entropy = log_total - expected
        return logprob, entropy

    recompute = torch.is_grad_enabled() and hidden.shape[0] > chunk_tokens
    parts = [
        checkpoint(score, part, target, use_reentrant=False, preserve_rng_state=False)
        if recompute
        else score(part, target)
        for part, target in zip(hidden.split(chunk_tokens), targets.split(chunk_tokens), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return TokenScores(torch.cat(logprobs), torch.cat(entropies))


class Scorer(torch.nn.Module):
    """Scores completions under a model: one forward pass, the head applied to completion tokens only.

    A module, so that the wrappers of multi-process training see one forward pass.

    Uses the model's body and output head apart. Some architectures do more between the two than their configuration
    says; so the first use compares with the model's own logits and, where they differ, the plain path is taken from
    then on, which needs more memory; that is said once.
    """

    def __init__(self, model: PreTrainedModel, *, pad_id: int, chunk_elements: int, autocast: str = "none") -> None:
        """chunk_elements: logits (tokens x vocabulary) at once. autocast: `bfloat16` for matrix products in it."""
        super().__init__()
        self.model = model
        self.pad_id = pad_id
        self.chunk_tokens = max(1, chunk_elements // _vocabulary(model))
        self.autocast = autocast
        self._split: bool | None = None

    def forward(
        self,
        prompts: Sequence[Sequence[int]],
        completions: Sequence[Sequence[int]],
        *,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> TokenScores:
        """Score every completion token given its prompt and the completion before it.

        prompts, completions: token ids, [rows] of uneven length. temperature: of the policy that is scored.
        Returns scores [sum of completion lengths], row by row.
        """
        rows = pad_rows(prompts, completions, self.pad_id, self.model.device)
        precision = (
            torch.autocast(self.model.device.type, torch.bfloat16) if self.autocast == "bfloat16" else nullcontext()
        )
        with precision:
            if self._split is None:
                self._split = self._body_and_head_agree(rows)
            hidden, head = self._hidden(rows) if self._split else (self._logits(rows), _identity)
            targets = rows.input_ids[:, 1:][rows.completion_mask]
            return score_hidden_states(
                hidden,
                targets,
                head,
                temperature=temperature,
                chunk_tokens=self.chunk_tokens,
                entropy_gradient=entropy_gradient,
            )

    def _hidden(self, rows: PaddedRows) -> tuple[Tensor, Head]:
        body = self.model.get_decoder()
        states = body(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).last_hidden_state
        return states[:, :-1][rows.completion_mask], output_head(self.model)

    def _logits(self, rows: PaddedRows) -> Tensor:
        logits = self.model(input_ids=rows.input_ids, attention_mask=rows.attention_mask, use_cache=False).logits
        selected: Tensor = logits[:, :-1][rows.completion_mask]
        return selected

    @torch.no_grad()
    def _body_and_head_agree(self, rows: PaddedRows) -> bool:
        """Compare body + head with the model's own logits on one short row."""
        length = min(int(rows.attention_mask[0].sum()), 64)
        probe = PaddedRows(
            rows.input_ids[:1, :length],
            rows.attention_mask[:1, :length],
            torch.ones(1, length - 1, dtype=torch.bool, device=rows.input_ids.device),
        )
        try:
            hidden, head = self._hidden(probe)
            logits = self._logits(probe).float()
            agree = bool((head(hidden).float() - logits).abs().max() <= 1e-2 * logits.abs().max())
        except (AttributeError, TypeError, RuntimeError) as error:
            logger.debug("body and head cannot be used apart: %s", error)
            agree = False
        if not agree:
            logger.warning("%s: logits are computed whole, which needs more memory.", type(self.model).__name__)
        return agree


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


def _identity(logits: Tensor) -> Tensor:
    return logits


def _vocabulary(model: PreTrainedModel) -> int:
    return int(model.config.get_text_config().vocab_size)
