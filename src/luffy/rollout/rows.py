"""The rows that are being decoded, and what has been drawn for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from luffy.types import Completion


@dataclass(frozen=True, slots=True)
class Rows:
    """One entry for each row in work. All [rows]."""

    index: Tensor  # which of all rows it is: prompt * n + copy
    drawn: Tensor  # tokens drawn so far
    position: Tensor  # of the token to be drawn next
    tokens: Tensor  # the one drawn last
    ended: Tensor  # whether it has ended; such rows stay until it pays to let them leave
    held: Tensor  # tokens it may come to hold, its prompt's padding included

    @classmethod
    def of(cls, prompts: Sequence[int], lengths: Sequence[int], n: int, max_tokens: int, device: torch.device) -> Rows:
        """Make n rows for each prompt; prompts: their indices, lengths: their tokens."""
        copies = torch.arange(n, device=device)
        index = (torch.tensor(prompts, device=device, dtype=torch.long)[:, None] * n + copies).flatten()
        none = torch.zeros_like(index)
        position = torch.tensor(lengths, device=device, dtype=torch.long).repeat_interleave(n)
        return cls(index, none, position, none, none.bool(), none + max(lengths, default=0) + max_tokens)

    def and_also(self, others: Rows) -> Rows:
        """These rows, then the others."""
        return Rows(*(torch.cat([getattr(self, one.name), getattr(others, one.name)]) for one in fields(self)))

    def where(self, stay: Tensor) -> Rows:
        """The rows that stay; stay: [rows]."""
        return Rows(*(getattr(self, one.name)[stay] for one in fields(self)))

    def after(self, tokens: Tensor, ends: Tensor) -> Rows:
        """One more token a row; ends: [rows], whether the token ends the completion, or its length does."""
        return Rows(self.index, self.drawn + 1, self.position + 1, tokens, self.ended | ends, self.held)

    def __len__(self) -> int:
        return len(self.index)


class DrawnTokens:
    """Tokens and log-probs of all rows, whether in work or not."""

    def __init__(self, rows: int, max_tokens: int, precision: torch.dtype, device: torch.device) -> None:
        self._tokens = torch.zeros(rows, max_tokens, dtype=torch.long, device=device)
        self._logprobs = torch.zeros(rows, max_tokens, dtype=precision, device=device)
        self._lengths = torch.full((rows,), max_tokens, device=device)
        self._finished = torch.zeros(rows, dtype=torch.bool, device=device)

    def record(self, rows: Rows, tokens: Tensor, logprobs: Tensor, ends: Tensor) -> None:
        """One token of each row; ends: whether it is an end token. What a row draws after its end is cut off."""
        self._tokens[rows.index, rows.drawn] = tokens
        self._logprobs[rows.index, rows.drawn] = logprobs
        finishes = ends & ~rows.ended
        self._lengths[rows.index] = torch.where(finishes, rows.drawn + 1, self._lengths[rows.index])
        self._finished[rows.index] |= ends

    def completions(self, first: int, last: int) -> list[Completion]:
        """The completions of rows first to last (exclusive), in order."""
        parts = (self._tokens, self._logprobs, self._lengths, self._finished)
        columns = (one[first:last].tolist() for one in parts)
        return [
            Completion(tuple(tokens[:length]), tuple(logprobs[:length]), finished)
            for tokens, logprobs, length, finished in zip(*columns, strict=True)
        ]
