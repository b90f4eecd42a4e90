"""What every rollout engine promises: prompts in, completions out, and new weights when the policy has changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from luffy.errors import RunError
from luffy.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn."""

    max_tokens: int  # a completion of this many tokens that has not ended is cut off
    temperature: float = 1.0  # 0: greedy
    top_p: float = 1.0  # smallest set of most likely tokens that holds this much probability
    seed: int = 0  # same seed, same prompts, same weights: same completions
    first: int = 0  # place of the first prompt in a batch shared out to several processes; noise goes by the place


class Engine(Protocol):
    """Turns prompts into completions under the current policy."""

    def generate(self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Draw n completions for each prompt, in the order of the prompts.

        The log-probs are those of the policy at the sampling temperature, before any top-p truncation (at temperature
        0: at temperature 1), so that they equal the trainer's.
        """
        ...

    def update_weights(self, policy: PreTrainedModel) -> None:
        """Generate with the weights of `policy` from now on."""
        ...

    def close(self) -> None:
        """Free what the engine holds."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that can hand over the completions of a prompt while it still generates those of others."""

    def stream(
        self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Yield (index of the prompt, its n completions) as they are there: what `generate` returns, in any order."""
        ...


def stream(
    engine: Engine, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling
) -> Iterator[tuple[int, list[Completion]]]:
    """Stream from any engine: from one that cannot, everything comes at the end.

    Raises RunError when it does not return what it was asked for: training on that would go wrong silently.
    """
    if isinstance(engine, StreamingEngine):
        arriving = engine.stream(prompt_ids, n, sampling)
    else:
        arriving = iter(enumerate(engine.generate(prompt_ids, n, sampling)))
    missing = set(range(len(prompt_ids)))
    for index, completions in arriving:
        trouble = "completions that nobody asked for" if index not in missing else _trouble(completions, n, sampling)
        if trouble:
            raise RunError(f"the engine ({type(engine).__name__}) returned {trouble}; the run cannot go on with that.")
        missing.remove(index)
        yield index, completions
    if missing:
        raise RunError(
            f"the engine ({type(engine).__name__}) returned nothing for {len(missing)} of {len(prompt_ids)} prompts; "
            "the run cannot go on without them."
        )


def _trouble(completions: Sequence[Completion], n: int, sampling: Sampling) -> str | None:
    """What is wrong with the completions of a prompt, if anything is. Numbers that are not finite are not judged."""
    if len(completions) != n:
        return f"{len(completions)} completions of a prompt in place of {n}"
    for one in completions:
        tokens, logprobs = len(one.token_ids), len(one.logprobs)
        if not tokens:
            return "a completion without tokens"
        if tokens > sampling.max_tokens:
            return f"a completion of {tokens} tokens in place of at most {sampling.max_tokens}"
        if tokens != logprobs:
            return f"{logprobs} log-probs for a completion of {tokens} tokens"
    return None
