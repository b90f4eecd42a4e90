"""Rows of uneven length into micro-batches.

A group mixes one long trace with short rollouts; padded to the longest, most of an update would be spent on nothing.
Packed rows need no padding, and a prompt's rows belong together, so that it is computed once. Where a model cannot take
packed rows, rows are sorted by length and cut into micro-batches that hold at most a budget of padded tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Rows that are scored together."""

    rows: list[int]  # their indices
    computed: int  # tokens that the forward pass computes
    padding: int  # of them, how many are padding


def rows_by_prompt(prompts: Sequence[Sequence[int]]) -> dict[tuple[int, ...], list[int]]:
    """The rows of each distinct prompt, in the order in which the prompts first appear."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for row, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(row)
    return groups


def split_packed(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], token_budget: int
) -> list[MicroBatch]:
    """Partition rows into micro-batches of at most `token_budget` packed tokens (see `luffy.policy.packing`).

    Rows with the same prompt follow each other. A row longer than the budget gets a micro-batch of its own.
    """
    batches: list[list[int]] = []
    sizes: list[int] = []
    for prompt, members in rows_by_prompt(prompts).items():
        begun = False  # whether the newest micro-batch has this prompt
        for row in members:
            more = len(completions[row]) - 1
            if batches and sizes[-1] + more + len(prompt) * (not begun) <= token_budget:
                batches[-1].append(row)
                sizes[-1] += more + len(prompt) * (not begun)
            else:
                batches.append([row])
                sizes.append(more + len(prompt))
            begun = True
    return [MicroBatch(rows, size, 0) for rows, size in zip(batches, sizes, strict=True)]


def split_padded(lengths: Sequence[int], token_budget: int) -> list[MicroBatch]:
    """Partition rows into micro-batches of at most `token_budget` padded tokens.

    Rows are taken from the longest to the shortest, so that a budget that is too large for the memory fails in the
    first micro-batch and not hours later. A row longer than the budget gets a micro-batch of its own. A micro-batch
    also ends where going on would pad more than it saves: at a row shorter than half of its longest one.
    """
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches: list[list[int]] = []
    for index in order:
        longest = lengths[batches[-1][0]] if batches else 0
        fits = batches and (len(batches[-1]) + 1) * longest <= token_budget
        if fits and 2 * lengths[index] >= longest:
            batches[-1].append(index)
        else:
            batches.append([index])
    sizes = [len(batch) * lengths[batch[0]] for batch in batches]
    return [
        MicroBatch(batch, size, size - sum(lengths[index] for index in batch))
        for batch, size in zip(batches, sizes, strict=True)
    ]


def padding_fraction(batches: Sequence[MicroBatch]) -> float:
    """Share of the tokens computed in these micro-batches that are padding."""
    computed = sum(batch.computed for batch in batches)
    return sum(batch.padding for batch in batches) / computed if computed else 0.0


def deal_rows(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], processes: int
) -> list[list[int]]:
    """Partition rows over processes, balanced by tokens; a process may get none.

    A prompt's rows stay together, so that it is computed once, unless they are more than a quarter of a fair share.
    Every process that deals the same rows finds the same shares.
    """
    if processes == 1:
        return [list(range(len(prompts)))]
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    most = sum(lengths) / (4 * processes)
    pieces: list[list[int]] = []
    for members in rows_by_prompt(prompts).values():
        pieces.append([])
        for row in members:
            if pieces[-1] and sum(lengths[one] for one in pieces[-1]) + lengths[row] > most:
                pieces.append([])
            pieces[-1].append(row)
    shares: list[list[int]] = [[] for _ in range(processes)]
    loads = [0] * processes
    for piece in sorted(pieces, key=lambda one: -sum(lengths[row] for row in one)):
        lightest = loads.index(min(loads))
        shares[lightest] += piece
        loads[lightest] += sum(lengths[row] for row in piece)
    return [sorted(share) for share in shares]


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """Prompts followed by completions, padded on the right."""

    input_ids: Tensor  # [rows, length]
    attention_mask: Tensor  # [rows, length], 1 on real tokens
    completion_mask: Tensor  # [rows, length - 1], True where position t predicts a completion token t + 1


def pad_rows(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad_id: int, device: torch.device
) -> PaddedRows:
    """Lay out prompt + completion of each row, padded on the right to the longest row."""
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    length = max(map(len, rows))
    input_ids = torch.tensor([row + [pad_id] * (length - len(row)) for row in rows])
    position = torch.arange(length)
    ends = torch.tensor([len(row) for row in rows])[:, None]
    starts = torch.tensor([len(prompt) for prompt in prompts])[:, None]
    target = position[1:]  # the token that position t - 1 predicts
    return PaddedRows(
        input_ids.to(device),
        (position < ends).long().to(device),
        ((target >= starts) & (target < ends)).to(device),
    )
