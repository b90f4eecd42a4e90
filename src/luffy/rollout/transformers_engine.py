"""Generation with a transformers model in this process, on a CPU or one GPU.

Decisions, and why:
- A group's prompt is prefilled once and its key-value cache repeated for the n rollouts.
- Prompts are padded on the left and batched by length under a budget of tokens.
- Finished rows leave the batch and the cache, so that one long completion does not keep the others computing.
- Tokens are drawn by inverting the cumulative distribution at uniform noise, drawn per row and position beforehand:
  which rows share a batch, and when rows leave it, does not change what is sampled.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from luffy.errors import ModelError
from luffy.policy import context_of
from luffy.rollout.engine import Sampling
from luffy.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

LEAVE_AT = 0.125  # rows leave the batch once this share of it has finished; each leaving copies the cache once


class TransformersEngine:
    """An `Engine` on a model that lives in this process; it may be the very model that is trained."""

    def __init__(
        self, model: PreTrainedModel, *, eos_ids: Sequence[int], pad_id: int, batch_tokens: int = 65536
    ) -> None:
        """batch_tokens: rows x (prompt + completion) tokens that may be in the cache at once."""
        self.model = model
        self.pad_id = pad_id
        self.batch_tokens = batch_tokens
        self._eos = torch.tensor(list(eos_ids), device=model.device)

    @torch.no_grad()
    def generate(self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Draw n completions for each prompt; see `Engine.generate`.

        A completion is cut off, too, where the longest prompt and it fill the model's context. Raises ModelError for a
        prompt that leaves no room.
        """
        sampling = self._within_context(sampling, max(map(len, prompt_ids), default=0))
        was_training = self.model.training
        self.model.eval()
        try:
            return self._generate_all(prompt_ids, n, sampling)
        finally:
            self.model.train(was_training)

    def update_weights(self, policy: PreTrainedModel) -> None:
        """Copy the weights of `policy`, unless it is the model generated with."""
        if policy is not self.model:
            self.model.load_state_dict(policy.state_dict())

    def close(self) -> None:
        """Nothing to free: the model belongs to the caller."""

    def _within_context(self, sampling: Sampling, longest_prompt: int) -> Sampling:
        context = context_of(self.model)
        if context is None or longest_prompt + sampling.max_tokens <= context:
            return sampling
        if longest_prompt >= context:
            raise ModelError(
                f"a prompt has {longest_prompt} tokens and the model reads {context}, so there is no room for an "
                "answer. Extend the context: policy.context_length=..., with a larger policy.rope_theta."
            )
        room = context - longest_prompt
        logger.warning(
            "max_tokens is %d, but the model reads %d tokens and the longest prompt has %d: completions are cut off "
            "after %d.",
            sampling.max_tokens,
            context,
            longest_prompt,
            room,
        )
        return replace(sampling, max_tokens=room)

    def _generate_all(self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        groups: list[list[Completion]] = [[] for _ in prompt_ids]
        noise = self._noise(len(prompt_ids) * n, sampling)
        for batch in self._batches(prompt_ids, n, sampling.max_tokens):
            rows = torch.tensor([prompt * n + copy for prompt in batch for copy in range(n)])
            chosen = noise[rows].to(self.model.device) if noise is not None else None
            completions = self._generate_batch([prompt_ids[index] for index in batch], n, sampling, chosen)
            for place, index in enumerate(batch):
                groups[index] = completions[place * n : (place + 1) * n]
        return groups

    def _noise(self, rows: int, sampling: Sampling) -> Tensor | None:
        if sampling.temperature == 0:
            return None
        generator = torch.Generator().manual_seed(sampling.seed)
        return torch.rand(rows, sampling.max_tokens, generator=generator)

    def _batches(self, prompt_ids: Sequence[Sequence[int]], n: int, max_tokens: int) -> Iterator[list[int]]:
        """Prompt indices, longest first, in batches within the budget (at least one prompt each)."""
        batch: list[int] = []
        for index in sorted(range(len(prompt_ids)), key=lambda index: -len(prompt_ids[index])):
            longest = len(prompt_ids[batch[0]]) if batch else 0
            if batch and (len(batch) + 1) * n * (longest + max_tokens) > self.batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _generate_batch(
        self, prompts: Sequence[Sequence[int]], n: int, sampling: Sampling, noise: Tensor | None
    ) -> list[Completion]:
        """Prefill the prompts, repeat each n times, decode until every row has ended. Returns [prompts * n]."""
        device, rows = self.model.device, len(prompts) * n
        input_ids, mask = _pad_left(prompts, self.pad_id, device)
        padded = not bool(mask.all())
        output = self.model(
            input_ids=input_ids,
            attention_mask=mask if padded else None,
            position_ids=_positions(mask) if padded else None,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = output.past_key_values
        cache.batch_repeat_interleave(n)
        logits = output.logits[:, -1].repeat_interleave(n, dim=0)
        mask = mask.repeat_interleave(n, dim=0)
        position = mask.sum(dim=1, keepdim=True)

        tokens = torch.full((rows, sampling.max_tokens), self.pad_id, device=device)
        precision = torch.float64 if logits.dtype == torch.float64 else torch.float32
        logprobs = torch.zeros((rows, sampling.max_tokens), dtype=precision, device=device)
        lengths = torch.full((rows,), sampling.max_tokens, device=device)
        finished = torch.zeros(rows, dtype=torch.bool, device=device)
        alive = torch.arange(rows, device=device)  # the original row of each row still in the batch
        done = torch.zeros(rows, dtype=torch.bool, device=device)  # of those, which have ended meanwhile
        for step in range(sampling.max_tokens):
            drawn, drawn_logprobs = draw_tokens(logits, sampling, None if noise is None else noise[alive, step])
            tokens[alive, step] = drawn
            logprobs[alive, step] = drawn_logprobs
            ends = torch.isin(drawn, self._eos) & ~done
            lengths[alive[ends]] = step + 1
            finished[alive[ends]] = True
            done |= ends
            ended = int(done.sum())
            if ended == len(done) or step + 1 == sampling.max_tokens:
                break
            if ended >= LEAVE_AT * len(done):
                stay = torch.nonzero(~done).squeeze(-1)
                cache.batch_select_indices(stay)
                alive, drawn, mask, position = alive[stay], drawn[stay], mask[stay], position[stay]
                done = done[stay]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            logits = self._decode(drawn, mask if padded else None, position, cache)
            position = position + 1
        return _completions(tokens, logprobs, lengths, finished)

    def _decode(self, drawn: Tensor, mask: Tensor | None, position: Tensor, cache: Any) -> Tensor:
        """Logits [rows, vocabulary] after one more token per row."""
        output = self.model(
            input_ids=drawn[:, None],
            attention_mask=mask,
            position_ids=position,
            past_key_values=cache,
            use_cache=True,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def draw_tokens(logits: Tensor, sampling: Sampling, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Draw one token per row.

    logits: [rows, vocabulary]. noise: [rows], uniform in [0, 1); None for greedy decoding.
    Returns tokens [rows] and their log-probs [rows] at the sampling temperature, before top-p truncation.
    """
    precise = logits if logits.dtype == torch.float64 else logits.float()
    logprobs = torch.log_softmax(precise / (sampling.temperature or 1.0), dim=-1)
    if noise is None:
        drawn = logprobs.argmax(dim=-1)
    else:
        probabilities = logprobs.exp()
        if sampling.top_p < 1:
            probabilities = keep_nucleus(probabilities, sampling.top_p)
        cumulative = probabilities.cumsum(dim=-1)
        # The first token whose cumulative probability exceeds the noise; one of probability 0 is never the first.
        threshold = noise[:, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
        drawn = torch.minimum(drawn, _last_possible(probabilities))  # rounding may make the noise reach the total
    return drawn, logprobs.gather(-1, drawn[:, None]).squeeze(-1)


def keep_nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Set to 0 what lies outside the smallest set of most likely tokens that holds `top_p`. [rows, vocabulary]."""
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    outside = ordered.cumsum(dim=-1) - ordered >= top_p
    return probabilities.masked_fill(torch.zeros_like(outside).scatter(-1, order, outside), 0.0)


def _last_possible(probabilities: Tensor) -> Tensor:
    """Index of the last token with a probability above 0. [rows]."""
    index = torch.arange(probabilities.shape[-1], device=probabilities.device)
    return torch.where(probabilities > 0, index, 0).amax(dim=-1)


def _pad_left(prompts: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Prompts [prompts, longest] padded on the left, and their mask."""
    longest = max(map(len, prompts))
    input_ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    return input_ids.to(device), mask.to(device)


def _positions(mask: Tensor) -> Tensor:
    """Position of each token among the real ones. [prompts, length]."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def _completions(tokens: Tensor, logprobs: Tensor, lengths: Tensor, finished: Tensor) -> list[Completion]:
    columns = zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), finished.tolist(), strict=True)
    return [Completion(tuple(row[:length]), tuple(scores[:length]), ended) for row, scores, length, ended in columns]
