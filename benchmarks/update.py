"""The update by itself: at uneven lengths, and against what the processor's matrix products allow.

`python benchmarks/update.py`. A LUFFY group has seven short rollouts beside one long trace. Two questions:

- The same tokens in eight rows of equal length need no padding at all. How much longer does the uneven group take?
  Goal: at most 1.15 times.
- An update of a model with N parameters needs about 6 N operations a token (2 forward, 4 backward). What share of the
  time would they take at the rate at which this processor multiplies the model's own matrices? Goal: at least 70 % in
  float32, 35 % under bfloat16 autocast. The rate is measured between the updates, on the products of one layer and the
  head, forward and both backward; tokens are those of prompts and completions; attention, norms, softmax, loss,
  clipping and optimizer count as loss. On a processor without bfloat16 units the second is not measured: its products
  are slower than in float32 there, and no one would choose it.

An update is `Learner.update`: log-probs, loss, backward, clipping, AdamW.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measuring import NO_UNITS, has_bfloat16, outcome, ratio, report, seconds, spread
from torch import Tensor
from workload import FIRST_WORD, SHAPES, Shape, Work, save_model

from luffy import Group, Problem, Rollout, load_config
from luffy.policy import load_model
from luffy.training.learner import Learner

UNEVEN = {
    "miniature": Work("miniature", groups=4, lengths=(60, 83, 107, 130, 153, 177, 200), trace=1002),
    "135M": Work("135M", groups=1, lengths=(60, 70, 80, 90, 100, 110, 120), trace=602, token_budget=4096),
}
REPEATS = {"miniature": 11, "135M": 5}


def start_learner(shape: Shape, overrides: dict[str, Any]) -> Learner:
    """A learner of a random model, its optimizer made; products are float32 where nothing else is said."""
    with tempfile.TemporaryDirectory() as folder:
        save_model(shape, Path(folder))
        settings = {"model": folder, "optimizer.learning_rate": 1e-6, "policy.autocast": "none"}
        config = load_config(None, settings | overrides)
        learner = Learner(load_model(folder, config.policy), config)
    learner.start_phase("rl", 0, 1)
    return learner


def make_groups(shape: Shape, groups: Sequence[Sequence[int]], prompt: int, traces: int) -> list[Group]:
    """Groups of random tokens.

    groups: lengths of the completions, [groups][members], of which the last `traces` are off-policy.
    """
    generator = random.Random(0)

    def draw(tokens: int) -> list[int]:
        return [generator.randrange(FIRST_WORD, shape.vocabulary) for _ in range(tokens)]

    made = []
    for number, lengths in enumerate(groups):
        prompt_ids = draw(prompt)
        first_trace = len(lengths) - traces
        rollouts = [
            Rollout(prompt_ids, draw(length), [-1.0] * length, place >= first_trace, True, float(place % 2), "")
            for place, length in enumerate(lengths)
        ]
        advantages = [0.5 if place % 2 else -0.5 for place in range(len(lengths))]
        made.append(Group(Problem(str(number), "x", "x"), rollouts, advantages))
    return made


def matrix_products(shape: Shape, tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Callable[[], None], float]:
    """The products of one layer and the head, forward and backward, and how many operations they are."""
    key_value = shape.width // shape.heads * shape.key_value_heads
    layer = [(shape.width, shape.width)] * 2 + [(shape.width, key_value)] * 2
    layer += [(shape.width, shape.inner)] * 2 + [(shape.inner, shape.width)]
    sizes = [*layer, (shape.width, shape.vocabulary)]
    operands: list[tuple[Tensor, Tensor, Tensor]] = [
        (torch.randn(tokens, into).to(dtype), torch.randn(out, into).to(dtype), torch.randn(tokens, out).to(dtype))
        for into, out in sizes
    ]

    def multiply() -> None:
        for states, weight, gradient in operands:
            states @ weight.T
            gradient @ weight
            gradient.T @ states

    return multiply, 6.0 * tokens * sum(into * out for into, out in sizes)


def measure(name: str, work: Work) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Rows of one model, and the seconds behind them."""
    shape = SHAPES[work.shape]
    overrides = {"policy.token_budget": work.token_budget, "rollout.max_tokens": work.longest}
    learner = start_learner(shape, overrides)
    members = [*work.lengths, work.trace]
    even, left = divmod(sum(members), len(members))
    assert left == 0, "the same tokens cannot be laid out evenly"
    uneven = make_groups(shape, [members] * work.groups, work.prompt, traces=1)
    equal = make_groups(shape, [[even] * len(members)] * work.groups, work.prompt, traces=1)
    multiply, operations = matrix_products(shape, tokens=1024)
    uneven_s, equal_s, products_s = seconds(
        partial(learner.update, uneven, 0), partial(learner.update, equal, 0), multiply, repeats=REPEATS[name]
    )
    parameters = sum(parameter.numel() for parameter in learner.policy.parameters())
    rates = [operations / one for one in products_s]
    limit = 6.0 * parameters * work.trained_tokens
    shares = [limit / rate / one for rate, one in zip(rates, uneven_s, strict=True)]
    lengths = f"{work.lengths[0]}-{work.lengths[-1]} tokens and a trace of {work.trace}"
    rows = [
        outcome(
            f"update at uneven lengths, {name}",
            "the same tokens at equal lengths",
            ratio(uneven_s, equal_s),
            "<= 1.15",
            note=f"{lengths} against {even} each",
        )
    ]
    if name == "135M":
        rate = f"{spread(rates)['median'] / 1e9:.0f} GFLOP a second; {spread(uneven_s)['median']:.2f} s"
        rows.append(outcome("update, 135M, float32", "its matrix products alone", spread(shares), ">= 70 %", note=rate))
        rows.append(bfloat16_row(shape, uneven, limit, overrides))
    raw = {"uneven, s": uneven_s, "equal, s": equal_s, "rate": rates, "share": shares}
    return rows, raw


def bfloat16_row(shape: Shape, groups: Sequence[Group], limit: float, overrides: dict[str, Any]) -> dict[str, Any]:
    """The same under bfloat16 autocast, where the processor has units for it."""
    what, against, goal = "update, 135M, bfloat16 autocast", "its matrix products alone", ">= 35 %"
    if not has_bfloat16():
        return outcome(what, against, None, goal, note=NO_UNITS)
    learner = start_learner(shape, overrides | {"policy.autocast": "bfloat16"})
    multiply, operations = matrix_products(shape, tokens=1024, dtype=torch.bfloat16)
    update_s, products_s = seconds(partial(learner.update, groups, 0), multiply, repeats=REPEATS["135M"])
    shares = [limit * product / operations / update for update, product in zip(update_s, products_s, strict=True)]
    rate = f"{operations / spread(products_s)['median'] / 1e9:.0f} GFLOP a second; {spread(update_s)['median']:.2f} s"
    return outcome(what, against, spread(shares), goal, note=rate)


def main() -> None:
    """Measure both models, or the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", choices=[*UNEVEN])
    named = parser.parse_args().model
    for name in [named] if named else UNEVEN:
        rows, raw = measure(name, UNEVEN[name])
        report(f"update-{name}", rows, seconds=raw)


if __name__ == "__main__":
    main()
