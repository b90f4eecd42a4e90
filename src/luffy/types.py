"""What flows through the system, from a problem on disk to a group that the policy learns from.

    Problem --engine--> Completion --verifier--> Rollout --group_advantages--> Group --learner--> better policy

Shapes are in brackets. Log-probabilities are natural logarithms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Prompt = str | tuple[Mapping[str, str], ...]


@dataclass(frozen=True, slots=True)
class Trace:
    """A solution written by a policy other than the one that is trained: off-policy guidance."""

    text: str  # what the teacher wrote after the prompt, without the end-of-sequence token
    model: str | None = None  # who wrote it, if known
    logprobs: tuple[float, ...] | None = None  # [tokens] under the same tokenizer; None: pi_phi = 1 as in the paper


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a checkable answer and, possibly, expert traces."""

    id: str  # unique within its data set
    prompt: Prompt  # plain text, or chat messages of the form {"role", "content"}
    answer: str  # the reference answer that the verifier compares with
    source: str = ""  # where it comes from; metrics and evaluations can be split by it
    traces: tuple[Trace, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine sampled for one prompt."""

    token_ids: tuple[int, ...]  # [tokens], the end-of-sequence token included when it was sampled
    logprobs: tuple[float, ...]  # [tokens], under the policy that sampled, at the sampling temperature
    finished: bool  # True: ended by itself; False: cut off by the length limit


@dataclass(slots=True)
class Rollout:
    """One way through a problem, sampled (on-policy) or given (off-policy), with the reward it earned."""

    prompt_ids: Sequence[int]  # [prompt tokens]
    completion_ids: Sequence[int]  # [tokens]
    behavior_logprobs: Sequence[float]  # [tokens], of the policy that wrote it; 0 for a trace without log-probs
    off_policy: bool  # True: an expert trace
    finished: bool  # False: cut off by the length limit, so it has no final answer
    reward: float  # 1 when the verifier accepted the final answer, else 0
    text: str  # the completion as text, as the verifier saw it
    failure: str | None = None  # why the verifier could not decide, if so; the reward is then 0
    extracted: str | None = None  # the final answer that the verifier found, if it found one and names what it found


@dataclass(slots=True)
class Group:
    """One problem with its n rollouts, the traces last, and what each is worth."""

    problem: Problem
    rollouts: list[Rollout]  # [n]
    advantages: list[float] = field(default_factory=list)  # [n], filled by `assign_advantages`
