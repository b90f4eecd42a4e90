"""A step over many ranks, simulated: what uneven lengths, verifiers and weight sync cost as the number of ranks grows.

`python benchmarks/simulate_step.py` prints tables for 1 to 1,024 ranks with stated constants;
`... --one RUN --many RUN` takes the constants from the first run's metrics.jsonl and rollouts (one process,
`rollouts_every=1`), simulates the second (several processes, the same recipe), and compares it with that run's own
metrics.jsonl.

The rules are those of this library: a rank samples and verifies a contiguous share of the problems; all wait for the
slowest; rows of the update are dealt by tokens, the longest first, to the rank that has least; weights go to the
engines before the next step. A decode step takes `decode_step` seconds and `decode_row` more for each row in it; at
most `slots` rows are in it, and waiting ones enter as others end.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

Lengths = Sequence[Sequence[int]]  # tokens of completions, [problems][members]


@dataclass(frozen=True, slots=True)
class Constants:
    """Seconds of the parts of a step."""

    decode_step: float  # of a decode step, whatever its rows
    decode_row: float = 0.0  # that a row adds to it
    verify: float = 0.0  # of one completion
    update: float = 0.0  # of an update, whatever its tokens
    update_token: float = 0.0  # that a token adds, on the rank that computes it
    exchange: float = 0.0  # of gradients, after an update
    sync: float = 0.0  # of new weights to the engines
    verifiers: int = 1  # a rank
    slots: int = 2**30  # rows that a rank decodes at once


@dataclass(frozen=True, slots=True)
class Step:
    """What the parts of a step took."""

    generate: tuple[float, ...]  # of each rank, until its last completion is verified
    verify: float  # that the slowest rank waited for its verifiers after its last token
    update: float  # of the rank with most tokens, with the exchange of gradients
    sync: float
    ahead: bool = False  # whether the next step's rollouts are generated during the update

    @property
    def rollouts(self) -> float:
        """Until all ranks have theirs."""
        return max(self.generate)

    @property
    def idle(self) -> float:
        """Share of the ranks' time of rollouts that is spent waiting for the slowest."""
        return 1 - sum(self.generate) / len(self.generate) / self.rollouts if self.rollouts else 0.0

    @property
    def seconds(self) -> float:
        """The step."""
        both = max(self.rollouts, self.update) if self.ahead else self.rollouts + self.update
        return both + self.sync


def simulate(
    lengths: Lengths,
    constants: Constants,
    ranks: int,
    *,
    traces: Sequence[int] = (),
    prompt: int = 0,
    ahead: bool = False,
) -> Step:
    """One step. traces: tokens of those that are trained on beside the rollouts. prompt: tokens, of each problem."""
    shares = [lengths[len(lengths) * rank // ranks : len(lengths) * (rank + 1) // ranks] for rank in range(ranks)]
    ends = [decode([length for group in share for length in group], constants) for share in shares]
    ready = [verify(one, constants) for one in ends]
    slowest = max(range(ranks), key=ready.__getitem__)
    waited = ready[slowest] - max(ends[slowest], default=0.0)
    rows = [length for group in lengths for length in group] + list(traces)
    most = max(deal([row + prompt / max(1, len(lengths[0])) for row in rows], ranks))
    exchange = constants.exchange if ranks > 1 else 0.0
    update = constants.update + constants.update_token * most + exchange
    return Step(tuple(ready), waited, update, constants.sync, ahead)


def decode(rows: Sequence[int], constants: Constants) -> list[float]:
    """When each row draws its last token. rows: tokens of each, in the order in which they enter."""
    waiting = deque(enumerate(rows))
    working: list[tuple[int, int]] = []  # (the decode step in which it ends, row)
    now, steps, ends = 0.0, 0, [0.0] * len(rows)
    while waiting or working:
        while waiting and len(working) < constants.slots:
            row, length = waiting.popleft()
            heapq.heappush(working, (steps + length, row))
        last = working[0][0]
        now += (last - steps) * (constants.decode_step + constants.decode_row * len(working))
        steps = last
        while working and working[0][0] == last:
            ends[heapq.heappop(working)[1]] = now
    return ends


def verify(ends: Sequence[float], constants: Constants) -> float:
    """When the last completion is verified, by verifiers that take them as they end."""
    free = [0.0] * constants.verifiers
    last = 0.0
    for end in sorted(ends):
        done = max(end, heapq.heappop(free)) + constants.verify
        heapq.heappush(free, done)
        last = max(last, done)
    return last


def deal(rows: Sequence[float], ranks: int) -> list[float]:
    """Tokens of each rank: the longest row first, to the rank that has least."""
    loads = [0.0] * ranks
    for row in sorted(rows, reverse=True):
        heapq.heapreplace(loads, loads[0] + row)
    return loads


# -- many ranks


def draw_lengths(
    problems: int, members: int, *, median: float, spread: float, limit: int, seed: int
) -> list[list[int]]:
    """Log-normal lengths, cut off at the limit. spread: standard deviation of the logarithm."""
    generator = random.Random(seed)
    return [
        [max(1, min(limit, round(median * generator.lognormvariate(0, spread)))) for _ in range(members)]
        for _ in range(problems)
    ]


def grow(constants: Constants, ranks: Sequence[int], *, a_rank: int, steps: int = 3, ahead: bool = False) -> list[Any]:
    """Rows of a table: the same work a rank, on more and more ranks."""
    table = []
    for count in ranks:
        found = [
            simulate(
                draw_lengths(a_rank * count, 8, median=1500, spread=0.6, limit=8192, seed=seed), constants, count,
                ahead=ahead,
            )
            for seed in range(steps)
        ]  # fmt: skip
        seconds = statistics.mean(step.seconds for step in found)
        table.append((count, seconds, statistics.mean(step.idle for step in found), found[0].verify, found[0].update))
    return table


STATED = Constants(  # of a 7B model on one GPU of 80 GB, from `luffy plan`'s arithmetic; not run on a GPU yet
    decode_step=0.020, decode_row=2.0e-4, verify=0.02, update_token=3.6e-4, exchange=0.5, sync=1.0, verifiers=8,
    slots=256,
)  # fmt: skip


# -- against runs


def read_run(folder: Path, skip: int) -> tuple[list[dict[str, float]], list[list[list[int]]], list[list[int]]]:
    """Of each step after the first `skip`: metrics, lengths [problems][members] of own rollouts, and of traces."""
    from luffy.config import load_config
    from luffy.policy import load_tokenizer

    tokenizer = load_tokenizer(load_config(folder / "config.yaml").model)
    metrics: list[dict[str, float]] = []
    lengths: list[list[list[int]]] = []
    traces: list[list[int]] = []
    for line in (folder / "metrics.jsonl").read_text().splitlines()[skip:]:
        step = json.loads(line)
        file = folder / "rollouts" / f"step-{int(step['step']):06d}.jsonl"
        groups = [json.loads(group)["rollouts"] for group in file.read_text().splitlines()]
        counted = [
            [(len(tokenizer(one["text"])["input_ids"]) + one["finished"], one["off_policy"]) for one in group]
            for group in groups
        ]
        metrics.append(step)
        lengths.append([[length for length, off in group if not off] for group in counted])
        traces.append([length for group in counted for length, off in group if off])
    return metrics, lengths, traces


def calibrate(folder: Path, skip: int = 2) -> Constants:
    """Constants of a run of one process, by least squares over its steps. Raises ValueError for too few steps."""
    import torch

    metrics, lengths, traces = read_run(folder, skip)
    if len(metrics) < 3:
        raise ValueError(f"{folder}: at least {skip + 3} steps are needed")
    longest = [max(map(max, groups)) for groups in lengths]
    tokens = [sum(map(sum, groups)) for groups in lengths]
    trained = [count + sum(of) for count, of in zip(tokens, traces, strict=True)]

    def fit(columns: Sequence[Sequence[float]], values: Sequence[float]) -> list[float]:
        matrix = torch.tensor(columns, dtype=torch.float64).T
        found = torch.linalg.lstsq(matrix, torch.tensor(values, dtype=torch.float64)[:, None]).solution
        return [max(0.0, float(one)) for one in found[:, 0]]

    step, row = fit([longest, tokens], [one["time/generate"] + one.get("time/verify", 0.0) for one in metrics])
    whole, token = fit([[1.0] * len(metrics), trained], [one["time/update"] for one in metrics])
    return Constants(step, row, update=whole, update_token=token)


def compare(one: Path, many: Path, ranks: int, skip: int = 2) -> dict[str, tuple[float, float]]:
    """Simulated and measured seconds, medians over steps: rollouts until all are gathered, update, both."""
    constants = calibrate(one)
    metrics, lengths, traces = read_run(many, skip)
    simulated = [simulate(groups, constants, ranks, traces=of) for groups, of in zip(lengths, traces, strict=True)]
    waited = ("generate", "verify", "gather")
    rollouts = [sum(step.get(f"time/{part}", 0.0) for part in waited) for step in metrics]
    updates = [step["time/update"] for step in metrics]
    both = [sum(parts) for parts in zip(rollouts, updates, strict=True)]  # without what a run writes and shows
    measured = {"rollouts": rollouts, "update": updates, "both": both}
    ours = {
        "rollouts": [step.rollouts for step in simulated],
        "update": [step.update for step in simulated],
        "both": [step.rollouts + step.update for step in simulated],
    }
    return {part: (statistics.median(ours[part]), statistics.median(measured[part])) for part in measured}


def main() -> None:
    """The tables, or a comparison with two runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one", type=Path, help="folder of a run of one process")
    parser.add_argument("--many", type=Path, help="folder of a run of several processes")
    parser.add_argument("--processes", type=int, default=2, help="of the second run")
    given = parser.parse_args()
    if given.one and given.many:
        for part, (simulated, measured) in compare(given.one, given.many, given.processes).items():
            print(
                f"{part:9} simulated {simulated:8.4f} s   measured {measured:8.4f} s   {simulated / measured - 1:+.0%}"
            )
        return
    ranks = (1, 8, 16, 64, 256, 1024)
    for name, constants, ahead in (
        ("as it is", STATED, False),
        ("64 rows at once on an engine", replace(STATED, slots=64), False),
        ("one verifier a rank, 2 s a completion", replace(STATED, verifiers=1, verify=2.0), False),
        ("one step ahead", STATED, True),
    ):
        print(f"\n{name}\n  ranks  seconds  waiting  verify  update")
        for count, seconds, idle, tail, update in grow(constants, ranks, a_rank=16, steps=1, ahead=ahead):
            print(f"  {count:5}  {seconds:7.1f}  {idle:7.1%}  {tail:6.1f}  {update:6.1f}")


if __name__ == "__main__":
    main()
