"""Which rows of an update each process computes, and in which micro-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from luffy.policy import MicroBatch, Scorer, deal_rows
from luffy.training.rows import Row, texts


@dataclass(frozen=True, slots=True)
class Round:
    """A micro-batch of this process, while the others compute theirs."""

    rows: list[Row]
    blank: bool  # there is no row left for this process: what it computes does not count
    last: bool  # gradients are summed at its end, if they were not before


def deal(rows: Sequence[Row], scorer: Scorer, processes: int, token_budget: int) -> list[list[MicroBatch]]:
    """The micro-batches of each process, by the rows' indices."""
    prompts, completions = texts(rows)
    dealt = []
    for share in deal_rows(prompts, completions, processes):
        of_share = [prompts[row] for row in share], [completions[row] for row in share]
        batches = scorer.micro_batches(*of_share, token_budget) if share else []
        dealt.append([replace(batch, rows=[share[place] for place in batch.rows]) for batch in batches])
    return dealt


def rounds(rows: Sequence[Row], dealt: Sequence[Sequence[MicroBatch]], rank: int) -> Iterator[Round]:
    """The micro-batches of the process `rank`, and blank ones until all processes have as many."""
    mine, count = dealt[rank], max(map(len, dealt))
    for place in range(count):
        blank = place >= len(mine)
        chosen = [_blank_row(rows[0])] if blank else [rows[index] for index in mine[place].rows]
        yield Round(chosen, blank, place == count - 1)


def _blank_row(row: Row) -> Row:
    """A row of two tokens and of no weight, of the kind of `row`."""
    token = row.rollout.completion_ids[:1]
    rollout = replace(row.rollout, prompt_ids=token, completion_ids=token, behavior_logprobs=[0.0])
    return replace(row, rollout=rollout, advantage=0.0, weight=0.0, old_logprobs=None)
