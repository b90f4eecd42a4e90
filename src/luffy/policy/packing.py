"""Rows of uneven length in one line of tokens: nothing is padded, and a group's prompt is computed once.

    prompt A | completion A1 | completion A2 | ... | prompt B | completion B1 | ...

Every layer but attention looks at one token at a time, so it does not matter which tokens lie beside each other. For
attention the tokens are laid out as rows again, sorted by length into blocks: a row's queries see the keys of its own
prompt and completion. Where all of a row are queries, causal attention needs no mask, and what fills a block up on the
right is seen by nobody. Where a prompt is longer than its completions, its own attention is computed once as well, and
the completions' queries come with a mask.

The last token of a row predicts nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from luffy.policy.batching import rows_by_prompt

SHORTEST_IN_BLOCK = 0.8  # of the longest row: a block is filled up by a fifth at most
SHORT = 256  # keys
NOWHERE = 2**30  # a position after every other


@dataclass(frozen=True, slots=True)
class PackedRows:
    """Rows as one line of tokens, and where their predictions are found."""

    input_ids: Tensor  # [1, tokens]
    position_ids: Tensor  # [1, tokens], from 0 in each row; completions go on where their prompt ends
    attention: PackedAttention
    predictors: Tensor  # [completion tokens], the token whose state predicts each; row by row
    targets: Tensor  # [completion tokens]


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of similar length, whose attention is one call."""

    queries: Tensor  # [rows x query length], tokens in the line; filled up with each row's last
    keys: Tensor | None  # [rows x key length], filled up with token 0; None: the queries' tokens, in causal order
    rows: int
    query_positions: Tensor  # [rows, query length]
    key_positions: Tensor  # [rows, key length], NOWHERE where filled up

    def mask(self, window: int | None) -> Tensor | None:
        """Who is seen by whom, [rows, 1, query length, key length]; None: plain causal order."""
        length = self.key_positions.shape[1]
        if self.keys is None and (window is None or window >= length):
            return None
        distance = self.query_positions[:, None, :, None] - self.key_positions[:, None, None, :]
        return distance >= 0 if window is None else (distance >= 0) & (distance < window)


@dataclass(slots=True)
class PackedAttention:
    """The attention plan of packed rows; see `AttentionPlan`."""

    blocks: list[Block]
    sources: Tensor  # [tokens], where each token's output lies in the blocks' outputs
    windows: set[int | None] = field(default_factory=set)  # that layers asked for
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, sliding_window: int | None
    ) -> Tensor:
        """Attention of one layer, block by block. query, key, value: [1, heads, tokens, width]."""
        self.windows.add(sliding_window)
        query, key, value = (states[0].transpose(0, 1) for states in (query, key, value))
        outputs = []
        for number, block in enumerate(self.blocks):
            keys = block.queries if block.keys is None else block.keys
            mask = self._mask(number, block, sliding_window)
            output = _attend(
                _take(query, block.queries, block.rows),
                _take(key, keys, block.rows),
                _take(value, keys, block.rows),
                mask,
                scaling,
            )
            outputs.append(output.transpose(1, 2).flatten(0, 1))
        together = torch.cat(outputs) if len(outputs) > 1 else outputs[0]
        heads, width = together.shape[1:]
        return _pick(together.flatten(1), self.sources).view(1, -1, heads, width)

    def _mask(self, number: int, block: Block, window: int | None) -> Tensor | None:
        """The block's mask, computed by the first layer that needs it."""
        if (number, window) not in self._masks:
            self._masks[number, window] = block.mask(window)
        return self._masks[number, window]


def pack_rows(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], device: torch.device
) -> PackedRows:
    """Lay rows out as one line of tokens; rows with the same prompt share its tokens.

    prompts, completions: token ids, [rows] of uneven length, none empty.
    """
    line: list[int] = []
    positions: list[int] = []
    spans: list[_Span] = []
    predictors: list[Tensor] = [torch.empty(0)] * len(prompts)
    for prompt, members in rows_by_prompt(prompts).items():
        start = len(line)
        line += prompt
        positions += range(len(prompt))
        shares = _prompt_is_shared([len(completions[row]) for row in members], len(prompt))
        if shares:
            spans.append(_Span(start, len(prompt), start, 0))
        for row in members:
            begin, length = len(line), len(completions[row]) - 1
            line += completions[row][:-1]
            positions += range(len(prompt), len(prompt) + length)
            spans.append(_Span(start, len(prompt), begin, length, queries_prompt=not shares))
            predictors[row] = torch.cat([torch.tensor([start + len(prompt) - 1]), torch.arange(begin, begin + length)])
    targets = torch.tensor([token for completion in completions for token in completion])
    return PackedRows(
        torch.tensor([line], device=device),
        torch.tensor([positions], device=device),
        _plan([span for span in spans if span.queries], len(line), device),
        torch.cat(predictors).to(device),
        targets.to(device),
    )


@dataclass(frozen=True, slots=True)
class _Span:
    """A row in the line: its prompt's tokens and its completion's."""

    prompt: int
    prompt_length: int
    completion: int
    completion_length: int
    queries_prompt: bool = True

    @property
    def keys(self) -> int:
        return self.prompt_length + self.completion_length

    @property
    def queries(self) -> int:
        return self.keys if self.queries_prompt else self.completion_length

    def tokens(self) -> Tensor:
        """[keys], in the line."""
        return torch.cat(
            [
                torch.arange(self.prompt, self.prompt + self.prompt_length),
                torch.arange(self.completion, self.completion + self.completion_length),
            ]
        )


def _prompt_is_shared(completion_lengths: Sequence[int], prompt_length: int) -> bool:
    """Whether attending once from the prompt, and with a mask from the completions, takes fewer products."""
    if len(completion_lengths) == 1:
        return False
    whole = sum((prompt_length + length) ** 2 / 2 for length in completion_lengths)
    apart = prompt_length**2 / 2 + sum(length * (prompt_length + length) for length in completion_lengths)
    return apart < whole


def _plan(spans: Sequence[_Span], tokens: int, device: torch.device) -> PackedAttention:
    order = sorted(spans, key=lambda span: (span.queries_prompt, -span.queries, -span.keys))
    groups: list[list[_Span]] = []
    for span in order:
        first = groups[-1][0] if groups else None
        alike = first is not None and first.queries_prompt == span.queries_prompt
        if first is not None and alike and span.queries >= SHORTEST_IN_BLOCK * first.queries:
            groups[-1].append(span)
        else:
            groups.append([span])
    sources = torch.empty(tokens, dtype=torch.long)
    blocks, offset = [], 0
    for group in groups:
        block, queries = _block(group)
        for place, span in enumerate(group):
            begin = offset + place * queries.shape[1]
            sources[queries[place, : span.queries]] = torch.arange(begin, begin + span.queries)
        offset += queries.numel()
        blocks.append(_moved(block, device))
    return PackedAttention(blocks, sources.to(device))


def _block(spans: Sequence[_Span]) -> tuple[Block, Tensor]:
    """The block of these rows, and its queries as [rows, query length]."""
    longest_query = max(span.queries for span in spans)
    longest_key = max(span.keys for span in spans)
    queries = torch.empty(len(spans), longest_query, dtype=torch.long)
    keys = torch.zeros(len(spans), longest_key, dtype=torch.long)
    query_positions = torch.empty_like(queries)
    key_positions = torch.full_like(keys, NOWHERE)
    for row, span in enumerate(spans):
        tokens, begin = span.tokens(), span.keys - span.queries
        queries[row, : span.queries], queries[row, span.queries :] = tokens[begin:], tokens[-1]
        query_positions[row, : span.queries] = torch.arange(begin, span.keys)
        query_positions[row, span.queries :] = span.keys - 1
        keys[row, : span.keys] = tokens
        key_positions[row, : span.keys] = torch.arange(span.keys)
    causal = spans[0].queries_prompt
    return Block(
        queries.flatten(), None if causal else keys.flatten(), len(spans), query_positions, key_positions
    ), queries


def _moved(block: Block, device: torch.device) -> Block:
    return Block(
        block.queries.to(device),
        None if block.keys is None else block.keys.to(device),
        block.rows,
        block.query_positions.to(device),
        block.key_positions.to(device),
    )


def _attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float | None) -> Tensor:
    """Attention of rows [rows, heads, length, width]; mask: None for plain causal order.

    A CPU's kernel takes up to four times as long for short rows in bfloat16 as in float32, so they are widened.
    """
    rounded = value.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    if query.device.type == "cpu" and key.shape[2] <= SHORT and rounded:
        with torch.autocast("cpu", enabled=False):
            return _attend(query.float(), key.float(), value.float(), mask, scaling).to(value.dtype)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _take(states: Tensor, tokens: Tensor, rows: int) -> Tensor:
    """States [tokens, heads, width] of these tokens as [rows, heads, length, width]."""
    heads, width = states.shape[1:]
    return _pick(states.flatten(1), tokens).view(rows, -1, heads, width).transpose(1, 2)


def _pick(states: Tensor, tokens: Tensor) -> Tensor:
    """Rows `tokens` of states [any, width]; the gradients of a row that is picked several times add up."""
    return states.index_select(0, tokens)
