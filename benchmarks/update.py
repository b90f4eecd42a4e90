"""The update on groups of 7 short rollouts and 1 long trace, against the same update on one padded batch.

`python benchmarks/update.py`. Goal: at least 2 times faster. Rollouts of 60 tokens, traces of 600, prompts of 20; a
random Llama of the miniature's shape and one ten times as large; forward, loss and backward, no optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from measuring import ratio, report, seconds
from transformers import LlamaConfig, LlamaForCausalLM

from luffy.policy import Scorer, padding_fraction, split_by_budget

GROUPS, SHORT, LONG, PROMPT, GOAL, BUDGET = 4, 60, 600, 20, 2.0, 8192
SHAPES = {"0.6M": (128, 384, 3), "6M": (320, 960, 5)}
VOCABULARY = 1000


def build(width: int, inner: int, layers: int) -> LlamaForCausalLM:
    """A random Llama."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=layers,
            num_attention_heads=4,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
        )
    )


def update(
    scorer: Scorer, prompts: Sequence[list[int]], completions: Sequence[list[int]], batches: Sequence[Sequence[int]]
) -> None:
    """Accumulate the gradient over these micro-batches."""
    for batch in batches:
        scores = scorer([prompts[index] for index in batch], [completions[index] for index in batch])
        (-scores.logprobs.exp().sum() / len(completions)).backward()
    scorer.zero_grad()


def main() -> None:
    """Measure both models."""
    generator = torch.Generator().manual_seed(0)
    lengths = ([SHORT] * 7 + [LONG]) * GROUPS

    def draw(length: int) -> list[int]:
        return [int(token) for token in torch.randint(0, VOCABULARY, (length,), generator=generator)]

    prompts, completions = [draw(PROMPT) for _ in lengths], [draw(length) for length in lengths]
    ours = split_by_budget([PROMPT + length for length in lengths], BUDGET)
    padded = [list(range(len(lengths)))]
    rows = []
    for name, shape in SHAPES.items():
        scorer = Scorer(build(*shape), pad_id=0, chunk_elements=2**24)
        one, other = seconds(
            partial(update, scorer, prompts, completions, padded),
            partial(update, scorer, prompts, completions, ours),
            repeats=5,
        )
        faster = ratio(one, other)
        rows.append(
            {
                "model": name,
                "rows": len(lengths),
                "padded batch, s": sorted(one)[2],
                "ours, s": sorted(other)[2],
                "padding before": padding_fraction([PROMPT + length for length in lengths], padded),
                "padding ours": padding_fraction([PROMPT + length for length in lengths], ours),
                "faster": faster,
                "goal": f">= {GOAL}",
                "reached": "yes" if faster["median"] >= GOAL else "no",
            }
        )
    report("update", rows)


if __name__ == "__main__":
    main()
