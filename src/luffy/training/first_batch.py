"""What the first batch of rollouts says about prompt, format and verifier: a mismatch makes a whole run useless."""

from __future__ import annotations

from collections.abc import Sequence

from luffy.config import Config
from luffy.formats import CompletionFormat
from luffy.reward import VERIFIERS
from luffy.types import Group

SHOWN_TAIL = 200  # characters at the end of the example


def describe_mismatch(groups: Sequence[Group], config: Config, layout: CompletionFormat) -> str | None:
    """A warning with an example where no own rollout has an answer that the verifier can extract; else None.

    layout: of completions, the thought opened if the prompts open it. A verifier of the user's own does not tell what
    it extracts; then None, unless every rollout lacks the end marker that the format needs.
    """
    own = [(group.problem, rollout) for group in groups for rollout in group.rollouts if not rollout.off_policy]
    unclosed = sum(layout.needs_closing and layout.closing not in rollout.text for _, rollout in own)
    tells = config.reward.kind in VERIFIERS and not any(rollout.failure for _, rollout in own)
    answered = any(rollout.extracted is not None or rollout.reward for _, rollout in own)
    if not own or answered or not (tells or unclosed == len(own)):
        return None
    cut = sum(not rollout.finished for _, rollout in own)
    reasons = [f"{cut} of them were cut off at rollout.max_tokens={config.rollout.max_tokens}"] if cut else []
    reasons += [f"{unclosed} have no {layout.closing!r}"] if unclosed else []
    problem, example = next((pair for pair in own if pair[1].finished), own[0])
    why = f" ({', '.join(reasons)})" if reasons else ""
    return (
        f"none of the {len(own)} rollouts of the first batch has an answer that reward.kind={config.reward.kind} can "
        f"extract{why}, so nothing is rewarded. Example, problem {problem.id!r}, answer "
        f"{problem.answer[:SHOWN_TAIL]!r}: ...{example.text[-SHOWN_TAIL:]!r}. Does data.template={config.data.template}"
        " suit the model, and does it ask for an answer in a form that the verifier reads? `luffy data show` shows it."
    )
