"""Where the answers of an evaluation come from: problems in, samples out, whatever generates them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from luffy.data.prompts import encode_prompts
from luffy.rollout import Engine, Sampling
from luffy.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luffy.data.prompts import Template


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer of a model."""

    text: str
    tokens: int
    finished: bool  # False: cut off by the length limit


class Sampler(Protocol):
    """Draws answers to problems."""

    def sample(self, problems: Sequence[Problem], n: int, sampling: Sampling) -> list[list[Sample]]:
        """N answers to each problem, in the order of the problems."""
        ...


class EngineSampler:
    """Answers of a rollout engine: of the model that is trained, or of one loaded to be evaluated."""

    def __init__(self, engine: Engine, tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
        self.engine, self.tokenizer, self.template = engine, tokenizer, template

    def sample(self, problems: Sequence[Problem], n: int, sampling: Sampling) -> list[list[Sample]]:
        """See `Sampler.sample`. Raises DataError for a prompt that the template cannot write."""
        prompts = encode_prompts(problems, self.tokenizer, self.template)
        return [
            [
                Sample(
                    str(self.tokenizer.decode(list(one.token_ids), skip_special_tokens=True)),
                    len(one.token_ids),
                    one.finished,
                )
                for one in group
            ]
            for group in self.engine.generate(prompts, n, sampling)
        ]
