"""What each measure of the update is worth by itself, and a picture of it.

`python benchmarks/measures.py`. One LUFFY group, seven rollouts beside a trace: forward, loss and backward of
a random model of SmolLM2-135M's width and vocabulary with four of its layers, in float32; from the plainest way on,
each way adds one measure to the one before. Writes results/measures.json and docs/performance.png.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import altair as alt
import torch
import vl_convert
from measuring import ROOT, ratio, report, seconds, spread
from transformers import LlamaConfig, LlamaForCausalLM

from luffy.policy import MicroBatch, Scorer, TokenScores, split_padded

LENGTHS, TRACE, PROMPT, VOCABULARY = (40, 45, 50, 55, 60, 65, 70), 400, 40, 49152
REPEATS = 5


@dataclass(frozen=True)
class Way:
    """A way to compute the update."""

    name: str
    packed: bool
    shared: bool = False  # whether rows of a group have one prompt; else prompts that only are as long
    at_once: bool = False  # whether a chunk's gradient is taken while its logits exist
    whole: bool = False  # all rows in one micro-batch


WAYS = (
    Way("one padded batch", packed=False, whole=True),
    Way("micro-batches by length", packed=False),
    Way("packed rows", packed=True),
    Way("the prompt once", packed=True, shared=True),
    Way("no logit twice", packed=True, shared=True, at_once=True),
)


def build() -> LlamaForCausalLM:
    """A random model."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=576, intermediate_size=1536, num_hidden_layers=4,
            num_attention_heads=9, num_key_value_heads=3, tie_word_embeddings=True,
        )
    )  # fmt: skip


def draw_rows(shared: bool) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions."""
    generator = torch.Generator().manual_seed(0)

    def draw(length: int) -> list[int]:
        return [int(token) for token in torch.randint(0, VOCABULARY, (length,), generator=generator)]

    completions = [draw(length) for length in (*LENGTHS, TRACE)]
    prompts = [draw(PROMPT)] * len(completions) if shared else [draw(PROMPT) for _ in completions]
    return prompts, completions


def likelihood(scores: TokenScores, _part: slice) -> torch.Tensor:
    """A loss that is a sum over tokens."""
    return -scores.logprobs.exp().sum()


def update(way: Way, scorer: Scorer, prompts: Sequence[list[int]], completions: Sequence[list[int]]) -> None:
    """Accumulate the gradient."""
    lengths = [len(prompt) + len(completion) for prompt, completion in zip(prompts, completions, strict=True)]
    batches = scorer.micro_batches(prompts, completions, 4096) if way.packed else split_padded(lengths, 4096)
    for batch in [MicroBatch(list(range(len(lengths))), 0, 0)] if way.whole else batches:
        rows = [prompts[row] for row in batch.rows], [completions[row] for row in batch.rows]
        if way.at_once:
            loss = scorer(*rows, loss=likelihood).loss
            assert loss is not None
        else:
            loss = likelihood(scorer(*rows), slice(0))
        loss.backward()
    scorer.zero_grad()


def draw_picture(rows: Sequence[dict[str, Any]]) -> None:
    """Bars of seconds, from the plainest way down."""
    values = [{"way": row["way"], "seconds": row["seconds"]["median"]} for row in rows]
    bars = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("seconds:Q", title="seconds, forward and backward"),
        y=alt.Y("way:N", sort=[way.name for way in WAYS], title=None, axis=alt.Axis(labelLimit=260)),
    )
    labels = bars.mark_text(align="left", dx=4).encode(text=alt.Text("seconds:Q", format=".2f"))
    title = "The update of a LUFFY group: each way adds a measure to the one above"
    figure = (bars.mark_bar(color="#3b6fb6") + labels).properties(
        width=520, height=180, title=title, background="white"
    )
    image = vl_convert.vegalite_to_png(json.dumps(figure.configure_axis(labelFontSize=13).to_dict()), scale=2)
    (ROOT / "docs" / "performance.png").write_bytes(image)


def main() -> None:
    """Measure the ways in turn."""
    model = build()
    actions: list[Callable[[], object]] = []
    for way in WAYS:
        scorer = Scorer(model, pad_id=0, chunk_elements=2**24, packed=way.packed)
        assert scorer.paths.packed == way.packed
        actions.append(partial(update, way, scorer, *draw_rows(way.shared)))
    measured = seconds(*actions, repeats=REPEATS)
    rows = [
        {"way": way.name, "seconds": spread(times), "faster than the first": ratio(measured[0], times)}
        for way, times in zip(WAYS, measured, strict=True)
    ]
    report("measures", rows)
    draw_picture(rows)


if __name__ == "__main__":
    main()
