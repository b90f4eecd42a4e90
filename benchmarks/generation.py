"""Generation against what transformers offers, and a decode step against its matrix products alone.

`python benchmarks/generation.py`, under four minutes on two cores. Goals: uneven lengths at least twice as fast as
`model.generate`, never slower than continuous batching (`generate_batch`); a decode step of 56 rows of the 135M model
at most 3 times the time of its linear layers.

Both sides sample at temperature 1 without truncation from the same model with random weights: one of SmolLM2-135M's
shape, one of the miniature's. Of such a model all tokens are about equally likely, so a set of end tokens that is a
share p of the vocabulary makes the lengths geometric with mean 1/p, cut at the limit, for every sampler alike: lengths
are uneven by the same rule on both sides, and no side is told which rows end when. Time is compared by token, since the
two draw different numbers of them; ours returns log-probs as well.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from measuring import has_bfloat16, outcome, ratio, report, seconds
from transformers import ContinuousBatchingConfig, GenerationConfig, LlamaConfig, LlamaForCausalLM

from luffy.rollout import Sampling, TransformersEngine
from luffy.rollout.decoding import LeanDecoder, SharedPromptDecoder
from luffy.rollout.packed_linear import packed_linears

GROUP, STEP_ROWS, REPEATS = 8, 56, 5
GOALS = {"generate": ">= 2", "continuous": ">= 1"}  # times as fast


@dataclass(frozen=True)
class Case:
    """A model's shape and how long prompts and completions are."""

    name: str
    shape: dict[str, Any]
    prompt: tuple[int, int]  # shortest, longest; even steps between them
    mean: int  # of a completion that no limit cuts
    limit: int
    prompts: int
    dtype: torch.dtype = torch.float32


MINIATURE = Case(
    "miniature",
    {
        "vocab_size": 24, "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 4,
    },
    (10, 24), 24, 96, 8,
)  # fmt: skip
SMOLLM2 = Case(
    "135M",
    {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3,
    },
    (16, 30), 12, 36, 4,
)  # fmt: skip
SMOLLM2_BFLOAT16 = replace(SMOLLM2, name="135M, bfloat16", dtype=torch.bfloat16)  # as rollouts are drawn under autocast


class Contest:
    """The contestants on one case. Each call draws with another seed and returns how many tokens it has drawn."""

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(**case.shape, tie_word_embeddings=True, max_position_embeddings=2048)
        self.case, self.model, self.seed = case, LlamaForCausalLM(config).to(case.dtype).eval(), 0
        # continuous batching sets up the model's attention in its own way, so each contestant has a model
        self.of_generate, self.of_continuous = deepcopy(self.model), deepcopy(self.model)
        shortest, longest = case.prompt
        lengths = [shortest + (longest - shortest) * place // (case.prompts - 1) for place in range(case.prompts)]
        self.prompts = [torch.randint(2, case.shape["vocab_size"], (length,)).tolist() for length in lengths]
        self.ends = list(range(1, 1 + case.shape["vocab_size"] // case.mean))
        self.engine = TransformersEngine(self.model, eos_ids=self.ends, pad_id=0)
        self.tokens: dict[str, list[int]] = {"ours": [], "generate": [], "continuous": []}
        self.settings = GenerationConfig(
            do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=case.limit, eos_token_id=self.ends,
            pad_token_id=0, num_return_sequences=GROUP,
        )  # fmt: skip

    def ours(self) -> None:
        """This project's engine."""
        self.seed += 1
        groups = self.engine.generate(self.prompts, GROUP, Sampling(self.case.limit, seed=self.seed))
        self.tokens["ours"].append(sum(len(one.token_ids) for group in groups for one in group))

    def generate(self) -> None:
        """`model.generate` on the batch padded on the left."""
        longest = max(map(len, self.prompts))
        rows = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in self.prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in self.prompts])
        output = self.of_generate.generate(input_ids=rows, attention_mask=mask, generation_config=self.settings)
        drawn = output[:, longest:]
        ended = torch.isin(drawn, torch.tensor(self.ends))
        self.tokens["generate"].append(int((ended.cumsum(dim=1) - ended.long() == 0).sum()))

    def continuous(self) -> None:
        """`model.generate_batch`, with as much cache and as large batches as the prompts need."""
        rows, length = self.case.prompts * GROUP, max(map(len, self.prompts)) + self.case.limit
        pages = rows * (length // 32 + 2)
        output = self.of_continuous.generate_batch(
            self.prompts,
            generation_config=self.settings,
            continuous_batching_config=ContinuousBatchingConfig(page_size=32, num_blocks=pages, max_batch_tokens=2048),
        )
        self.tokens["continuous"].append(sum(len(one.generated_tokens) for one in output.values()))


def compare(case: Case) -> list[dict[str, Any]]:
    """Ours against both others, by token."""
    contest = Contest(case)
    names: tuple[str, ...] = ("ours", "generate", "continuous")
    measured = seconds(*(getattr(contest, name) for name in names), repeats=REPEATS)
    by_token = {
        name: [time / tokens for time, tokens in zip(times, contest.tokens[name][1:], strict=True)]
        for name, times in zip(names, measured, strict=True)
    }
    rows = []
    for name, goal in GOALS.items():
        faster = ratio(by_token[name], by_token["ours"])
        times = [f"{1e3 * median(by_token[one]):.3g}" for one in ("ours", name)]
        mean = median(contest.tokens["ours"]) / case.prompts / GROUP
        note = f"{times[0]} ms a token against {times[1]}; {mean:.0f} tokens on average, at most {case.limit}"
        against = {"generate": "model.generate", "continuous": "continuous batching"}[name]
        rows.append(outcome(f"generation, uneven lengths, {case.name}", against, faster, goal, note=note))
    return rows


@torch.no_grad()
def compare_step(case: Case, goal: str) -> dict[str, Any]:
    """A decode step of 56 rows against the model's linear layers alone, the output head included."""
    contest = Contest(case)
    contest.ours()  # lets the model take attention plans
    group = STEP_ROWS // case.prompts

    def stepping(kind: type[SharedPromptDecoder]) -> Callable[[], None]:
        decoder = kind(contest.model, 0)
        decoder.prefill(contest.prompts, group)
        position = torch.tensor([len(prompt) for prompt in contest.prompts for _ in range(group)])
        token = torch.full_like(position, 5)

        def steps() -> None:
            for _ in range(4):
                decoder.decode(token, position)
                position.add_(1)

        return steps

    linears = [module for module in contest.model.modules() if isinstance(module, torch.nn.Linear)]
    inputs = {module.in_features: torch.randn(STEP_ROWS, module.in_features, dtype=case.dtype) for module in linears}

    def products() -> None:
        for _ in range(4):
            for module in linears:
                torch.nn.functional.linear(inputs[module.in_features], module.weight)

    ours, bare = seconds(stepping(LeanDecoder), products, repeats=7)
    with packed_linears(contest.model, case.limit):
        (library,) = seconds(stepping(SharedPromptDecoder), repeats=7)
    ms = [f"{1e3 * median(times) / 4:.3g}" for times in (ours, bare, library)]
    note = f"{ms[0]} ms against {ms[1]}; {ms[2]} by the library's forward pass"
    what = f"decode step of {STEP_ROWS} rows, {case.name}"
    return outcome(what, "its matrix products alone", ratio(ours, bare), goal, note=note)


def main() -> None:
    """Measure and report."""
    rows: list[dict[str, Any]] = []
    cases = [MINIATURE, SMOLLM2, *([SMOLLM2_BFLOAT16] if has_bfloat16() else [])]
    for case in cases:
        rows += compare(case)
        gc.collect()
    report("generation", [*rows, *(compare_step(case, "<= 3") for case in cases)])


if __name__ == "__main__":
    main()
