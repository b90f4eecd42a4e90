"""What each measure of the update and of generation is worth by itself, and a picture of it.

`python benchmarks/measures.py`. A random model of SmolLM2-135M's width and vocabulary with four of its layers, in
float32; from the plainest way on, each way adds one measure to the one before. The update is forward, loss and backward
of one LUFFY group, seven rollouts beside a trace; the generation is that of `generation.py`, of uneven lengths. Writes
results/measures.json and docs/performance.png.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import altair as alt
import torch
import vl_convert
from generation import SMOLLM2, Contest
from measuring import ROOT, ratio, report, seconds, spread
from transformers import LlamaConfig, LlamaForCausalLM

from luffy.policy import MicroBatch, Scorer, TokenScores, split_padded
from luffy.rollout import packed_linear, transformers_engine
from luffy.rollout.decoding import Decoder, LeanDecoder, PlainDecoder, SharedPromptDecoder

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


@dataclass(frozen=True)
class DecodingWay:
    """A way to generate."""

    name: str
    decoder: type[Decoder]
    leave_at: float = transformers_engine.LEAVE_AT
    packed: bool = False  # whether large weights are laid out for few rows


DECODING_WAYS = (
    DecodingWay("the library's cache, all rows to the end", PlainDecoder, leave_at=1.0),
    DecodingWay("finished rows leave", PlainDecoder),
    DecodingWay("own cache and attention", SharedPromptDecoder),
    DecodingWay("weights laid out for few rows", SharedPromptDecoder, packed=True),
    DecodingWay("fewer calls", LeanDecoder, packed=True),
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


@contextmanager
def generating(way: DecodingWay, contest: Contest) -> Iterator[None]:
    """Within the block, the contest's engine generates in this way."""
    found = transformers_engine.LEAVE_AT, packed_linear.LEAST_TOKENS
    contest.engine._decoder, transformers_engine.LEAVE_AT = way.decoder, way.leave_at
    packed_linear.LEAST_TOKENS = 0 if way.packed else sys.maxsize
    try:
        yield
    finally:
        transformers_engine.LEAVE_AT, packed_linear.LEAST_TOKENS = found


def generate(way: DecodingWay, contest: Contest) -> None:
    """Draw always the same completions."""
    contest.seed = 0
    with generating(way, contest):
        contest.ours()


def draw_bars(title: str, unit: str, rows: Sequence[dict[str, Any]]) -> alt.LayerChart:
    """Bars of seconds, from the plainest way down."""
    values = [{"way": row["way"], "seconds": row["seconds"]["median"]} for row in rows]
    bars = alt.Chart(alt.Data(values=values)).encode(
        x=alt.X("seconds:Q", title=unit),
        y=alt.Y("way:N", sort=[row["way"] for row in rows], title=None, axis=alt.Axis(labelLimit=280)),
    )
    labels = bars.mark_text(align="left", dx=4).encode(text=alt.Text("seconds:Q", format=".2f"))
    return (bars.mark_bar(color="#3b6fb6") + labels).properties(width=520, height=170, title=title)


def draw_picture(update_rows: Sequence[dict[str, Any]], generation_rows: Sequence[dict[str, Any]]) -> None:
    """Both sets of bars, one below the other."""
    update_bars = draw_bars("The update of a LUFFY group", "seconds, forward and backward", update_rows)
    generation_bars = draw_bars("Generation, groups of 8 of uneven lengths", "seconds", generation_rows)
    figure = alt.vconcat(
        update_bars, generation_bars, title="Each way adds a measure to the one above", background="white"
    ).resolve_scale(x="independent", y="independent")
    image = vl_convert.vegalite_to_png(json.dumps(figure.configure_axis(labelFontSize=13).to_dict()), scale=2)
    (ROOT / "docs" / "performance.png").write_bytes(image)


def rows_of(ways: Sequence[Way | DecodingWay], measured: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
    """Seconds of each way, and how many times as fast as the first it is."""
    return [
        {"way": way.name, "seconds": spread(times), "faster than the first": ratio(measured[0], times)}
        for way, times in zip(ways, measured, strict=True)
    ]


def measure_update() -> list[dict[str, Any]]:
    """The ways to compute the update, in turn."""
    model = build()
    actions: list[Callable[[], object]] = []
    for way in WAYS:
        scorer = Scorer(model, pad_id=0, chunk_elements=2**24, packed=way.packed)
        assert scorer.paths.packed == way.packed
        actions.append(partial(update, way, scorer, *draw_rows(way.shared)))
    return rows_of(WAYS, seconds(*actions, repeats=REPEATS))


def measure_generation() -> list[dict[str, Any]]:
    """The ways to generate, in turn."""
    contest = Contest(replace(SMOLLM2, shape=SMOLLM2.shape | {"num_hidden_layers": 4}))
    contest.ours()  # lets the model take attention plans
    ways = [partial(generate, way, contest) for way in DECODING_WAYS]
    measured = seconds(*ways, repeats=REPEATS)
    assert len(set(contest.tokens["ours"][1:])) == 1, "the ways have not drawn the same completions"
    return rows_of(DECODING_WAYS, measured)


def main() -> None:
    """Measure and draw."""
    update_rows, generation_rows = measure_update(), measure_generation()
    report("measures", [*update_rows, *generation_rows])
    draw_picture(update_rows, generation_rows)


if __name__ == "__main__":
    main()
