"""Generation with a transformers model in this process, on a CPU or one GPU.

Decisions, and why:
- A group's prompt is prefilled once, and its keys and values kept once, whatever n is (rollout/cache.py).
- Prompts are padded on the left and batched by length under a budget of tokens.
- Finished rows leave, so that one long completion does not keep the others computing; where there were too many prompts
  for the budget, the next ones enter then.
- On a CPU, large weights are laid out for products of few rows (rollout/packed_linear.py), and architectures that are
  known by name decode in fewer calls than their own forward pass makes (rollout/lean.py).
- Tokens are drawn by inverting the cumulative distribution at uniform noise, drawn per row and position beforehand:
  which rows share a batch, and when rows leave it, does not change what is sampled.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from luffy.errors import ModelError
from luffy.policy import context_of
from luffy.policy.adapters import merged_weights
from luffy.policy.sharding import gathered, is_split, whole_shape
from luffy.rollout.decoding import Decoder, LeanDecoder, SharedPromptDecoder, pick_decoder
from luffy.rollout.engine import Sampling
from luffy.rollout.packed_linear import LEAST_TOKENS, packed_linears
from luffy.rollout.rows import DrawnTokens, Rows
from luffy.rollout.sampling import draw_tokens
from luffy.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

LEAVE_AT = 0.125  # rows leave once this share of them has ended; each leaving copies the cache of own tokens once
ENTER_AT = 0.25  # waiting prompts enter once this share of the budget is free; each entering is a further wave


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
        self._decoder: type[Decoder] | None = None  # chosen at the first use

    def generate(self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Draw n completions for each prompt; see `Engine.generate`.

        A completion is cut off, too, where the longest prompt and it fill the model's context. Raises ModelError for a
        prompt that leaves no room.
        """
        groups = dict(self.stream(prompt_ids, n, sampling))
        return [groups[index] for index in range(len(prompt_ids))]

    @torch.no_grad()
    def stream(
        self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Hand over the completions of each prompt when the last of them has ended; see `StreamingEngine.stream`."""
        if not prompt_ids:
            return
        sampling = self._within_context(sampling, max(map(len, prompt_ids)))
        was_training = self.model.training
        self.model.eval()
        try:
            decoder = self._decoder_for(max(prompt_ids, key=len), sampling.max_tokens)
            with nullcontext() if decoder is LeanDecoder else packed_linears(self.model, sampling.max_tokens):
                yield from self._stream(prompt_ids, n, sampling, decoder(self.model, self.pad_id))
        finally:
            self.model.train(was_training)

    def update_weights(self, policy: PreTrainedModel) -> None:
        """Copy the weights of `policy` in place, into this model's dtype, unless it is the model generated with.

        Raises ModelError where the two have different weights.
        """
        if policy is not self.model:
            copy_weights(policy, self.model)

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

    def _stream(
        self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling, decoder: Decoder
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Prefill what there is room for, decode a token a row, let finished rows leave; until all have ended."""
        device, limit = self.model.device, sampling.max_tokens
        waiting = deque(sorted(range(len(prompt_ids)), key=lambda index: -len(prompt_ids[index])))
        noise = self._noise(len(prompt_ids), n, sampling)
        precision = torch.float64 if self.model.dtype == torch.float64 else torch.float32
        drawn = DrawnTokens(len(prompt_ids) * n, limit, precision, device)
        rows = Rows.of([], [], n, limit, device)
        working = torch.full((len(prompt_ids),), n)  # how many rows of each prompt have not ended
        while waiting or len(rows):
            logits = [decoder.decode(rows.tokens, rows.position - 1)] if len(rows) else []
            if entering := self._entering(waiting, prompt_ids, n, limit, rows, joins=decoder.joins):
                prompts = [prompt_ids[index] for index in entering]
                logits.append(decoder.prefill(prompts, n))
                rows = rows.and_also(Rows.of(entering, [len(prompt) for prompt in prompts], n, limit, device))
            chosen = None if noise is None else noise[rows.index, rows.drawn]
            tokens, logprobs = draw_tokens(torch.cat(logits) if len(logits) > 1 else logits[0], sampling, chosen)
            ends = torch.isin(tokens, self._eos)
            drawn.record(rows, tokens, logprobs, ends)
            rows = rows.after(tokens, ends)
            ended, longest = torch.stack([rows.ended.sum(), rows.drawn.max()]).tolist()
            if longest == limit or ended >= LEAVE_AT * len(rows):
                stay = ~rows.ended & (rows.drawn < limit)
                decoder.keep(stay)
                left = (rows.index[~stay] // n).cpu()
                working -= left.bincount(minlength=len(working))
                rows = rows.where(stay)
                for prompt in left[working[left] == 0].unique().tolist():
                    yield prompt, drawn.completions(prompt * n, (prompt + 1) * n)

    def _decoder_for(self, prompt: Sequence[int], tokens: int) -> type[Decoder]:
        """The model's decoder, chosen at the first use; the lean one joins weights anew, too long for a few tokens."""
        if self._decoder is None:
            self._decoder = pick_decoder(self.model, prompt, self.pad_id)
        few = tokens < LEAST_TOKENS and self._decoder is LeanDecoder
        return SharedPromptDecoder if few else self._decoder

    def _noise(self, prompts: int, n: int, sampling: Sampling) -> Tensor | None:
        """Uniform noise [rows, tokens]; a row's depends on its place in the whole batch, not on this share of it."""
        if sampling.temperature == 0:
            return None
        generator = torch.Generator().manual_seed(sampling.seed)
        before = sampling.first * n
        rows = torch.rand(before + prompts * n, sampling.max_tokens, generator=generator)
        return rows[before:].to(self.model.device)

    def _entering(
        self,
        waiting: deque[int],
        prompt_ids: Sequence[Sequence[int]],
        n: int,
        max_tokens: int,
        rows: Rows,
        *,
        joins: bool,
    ) -> list[int]:
        """Take the prompts off `waiting` for which there is room now: at least one where no rows are left."""
        if not waiting or (len(rows) and not joins):
            return []
        room = self.batch_tokens - int(rows.held.sum())
        if len(rows) and room < ENTER_AT * self.batch_tokens:
            return []
        fit = room // (n * (len(prompt_ids[waiting[0]]) + max_tokens))
        return [waiting.popleft() for _ in range(min(len(waiting), max(fit, 0 if len(rows) else 1)))]


@torch.no_grad()
def copy_weights(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Copy what `state_dict` holds, in place and into the target's dtypes; tied weights once. Raises ModelError."""
    theirs, ours = dict(merged_weights(source)), target.state_dict()
    lacking = sorted(theirs.keys() ^ ours.keys())
    different = [name for name in theirs.keys() & ours.keys() if whole_shape(theirs[name]) != ours[name].shape]
    if lacking or different:
        raise ModelError(f"the engine's model is not that of the policy: {(lacking + different)[0]} differs.")
    once = {weight.data_ptr(): name for name, weight in ours.items()}.values()
    if is_split(source):
        for name, weight in gathered(((name, theirs[name]) for name in once), source):  # all at once may not fit
            ours[name].copy_(weight)
    else:
        torch._foreach_copy_([ours[name] for name in once], [theirs[name] for name in once])
