"""What the miniature's bases can do before any training, as docs/results.md says it.

    python benchmarks/describe_bases.py

Prints a table and writes docs/results/bases.json; about 2 minutes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from luffy.config import PolicyConfig
from luffy.data.miniature import STYLES, Chain, evaluation_problems
from luffy.policy import Scorer, load_model
from luffy.rollout import Sampling, TransformersEngine
from luffy.types import Problem

BASES = ("miniature", "miniature-eager")
SAMPLES = 50  # a problem
BOUNDS = (0.001, 0.01, 0.1, 0.5)
OUTPUT = Path(__file__).parents[1] / "docs" / "results" / "bases.json"


def read_chain(problem: Problem) -> Chain:
    """The chain that a question asks for."""
    operations = re.findall(r"([+*-])(\d)", str(problem.prompt)[3:])
    return Chain(int(str(problem.prompt)[1:3]), tuple((sign, int(operand)) for sign, operand in operations))


class Base:
    """A base model and what is asked of it."""

    def __init__(self, name: str) -> None:
        """name: of a model in the package."""
        self.loaded = load_model(name, PolicyConfig())
        self.engine = TransformersEngine(self.loaded.model, eos_ids=self.loaded.eos_ids, pad_id=self.loaded.pad_id)
        self.scorer = Scorer(self.loaded.model, pad_id=self.loaded.pad_id, chunk_elements=10**7)
        self.problems = evaluation_problems("hard")
        self.chains = [read_chain(problem) for problem in self.problems]

    def encode(self, text: str) -> list[int]:
        """Token ids [tokens]."""
        return list(self.loaded.tokenizer(text)["input_ids"])

    def generate(self, prompts: list[str], samples: int, max_tokens: int, temperature: float) -> list[list[str]]:
        """Completions as text, [prompts][samples]."""
        sampling = Sampling(max_tokens=max_tokens, temperature=temperature, seed=0)
        groups = self.engine.generate([self.encode(prompt) for prompt in prompts], samples, sampling)
        decode = self.loaded.tokenizer.decode
        return [[str(decode(list(one.token_ids), skip_special_tokens=True)) for one in group] for group in groups]

    def sampled_successes(self) -> tuple[int, int, int]:
        """Completions sampled at temperature 1: all; worked out but for one step at most; of these the right ones."""
        groups = self.generate([str(problem.prompt) for problem in self.problems], SAMPLES, 84, 1.0)
        worked = [
            (text, chain)
            for group, chain in zip(groups, self.chains, strict=True)
            for text in group
            if text.count("=") >= len(chain.operations) - 1
        ]
        right = sum(text.rpartition("#")[2] == chain.answer for text, chain in worked)
        return SAMPLES * len(groups), len(worked), right

    def made_to_work(self) -> float:
        """Share of questions that come out right when each step is begun for it and it only fills in the value."""
        texts = [
            f"{problem.prompt}{chain.start:02d}" for problem, chain in zip(self.problems, self.chains, strict=True)
        ]
        for place in range(max(len(chain.operations) for chain in self.chains)):
            going_on = [index for index, chain in enumerate(self.chains) if place < len(chain.operations)]
            for index in going_on:
                sign, operand = self.chains[index].operations[place]
                texts[index] += f"{sign}{operand}="
            values = self.generate([texts[index] for index in going_on], 1, 2, 0.0)
            for index, (value,) in zip(going_on, values, strict=True):
                texts[index] += value
        return mean(text[-2:] == chain.answer for text, chain in zip(texts, self.chains, strict=True))

    @torch.no_grad()
    def trace_tokens(self, style: str) -> list[float]:
        """Probability of every token of the hard questions' working-outs in that style."""
        prompts = [self.encode(str(problem.prompt)) for problem in self.problems]
        scores = self.scorer(prompts, [self.encode(chain.working(style)) for chain in self.chains])
        return [float(value) for value in scores.logprobs.exp()]


def describe(name: str) -> dict[str, Any]:
    """Everything about one base."""
    base = Base(name)
    sampled, worked, right = base.sampled_successes()
    shares = {}
    for style in STYLES:
        tokens = base.trace_tokens(style)
        shares[style] = {f"below {bound:g}": sum(one < bound for one in tokens) / len(tokens) for bound in BOUNDS}
    return {
        "sampled": sampled,
        "worked to the end": worked,
        "of these right": right,
        "made to work, right": base.made_to_work(),
        "share of trace tokens by probability": shares,
    }


def main() -> None:
    """Describe both bases."""
    described = {name: describe(name) for name in BASES}
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    OUTPUT.write_text(json.dumps(described, indent=2) + "\n")
    print(json.dumps(described, indent=2))


if __name__ == "__main__":
    main()
