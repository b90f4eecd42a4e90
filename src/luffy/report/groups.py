"""A browsable sample of the groups: problems with their rollouts and traces, rewards, advantages and tokens.

For every method, the first seed that saved rollouts; of those, the first, the middle and the last step; of each step,
as many groups as fit. They are taken in the order of the file, not chosen, so that the sample does not flatter.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from luffy.comparison.collect import Comparison, Run, is_number
from luffy.files import read_lines

BYTES = 1_500_000  # of all groups on the page, as JSON
GROUPS_A_STEP = 12
LONGEST_TEXT = 6_000  # characters of a completion that are shown
LONGEST_TOKENS = 1_200  # tokens of a completion that are shown one by one


def sample_groups(comparison: Comparison) -> list[dict[str, Any]]:
    """Groups of every method as plain JSON values; the texts are as the model wrote them, not escaped."""
    share = BYTES // max(1, len(comparison.methods))
    return [group for method, runs in comparison.methods.items() for group in _of_method(method, runs, share)]


def _of_method(method: str, runs: Sequence[Run], budget: int) -> list[dict[str, Any]]:
    files = next((found for run in runs if (found := sorted(run.folder.glob("rollouts/step-*.jsonl")))), [])
    chosen = sorted({0, len(files) // 2, len(files) - 1}) if files else []
    groups: list[dict[str, Any]] = []
    for place in chosen:
        left = budget // len(chosen)
        step = int(files[place].stem.removeprefix("step-"))
        for line in read_lines(files[place])[:GROUPS_A_STEP]:
            group = _group(line, method, step)
            left -= len(json.dumps(group))
            if left < 0:
                break
            groups.append(group)
    return groups


def _group(line: Mapping[str, Any], method: str, step: int) -> dict[str, Any]:
    problem = line.get("problem") or {}
    return {
        "method": method,
        "step": step,
        "id": str(problem.get("id", "")),
        "prompt": _shortened(_prompt(problem.get("prompt", ""))),
        "answer": _shortened(str(problem.get("answer", ""))),
        "rollouts": [_rollout(rollout) for rollout in line.get("rollouts") or ()],
    }


def _rollout(rollout: Mapping[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "trace": bool(rollout.get("off_policy")),
        "reward": _number(rollout.get("reward")),
        "advantage": _number(rollout.get("advantage")),
        "finished": bool(rollout.get("finished", True)),
    }
    tokens = rollout.get("tokens")
    logprobs = rollout.get("logprobs")
    if not tokens or len(tokens) > LONGEST_TOKENS or not logprobs or len(logprobs) != len(tokens):
        return shown | {"text": _shortened(str(rollout.get("text", "")))}
    # probabilities in percent: a page needs no more digits
    return shown | {
        "tokens": [str(token) for token in tokens],
        "percent": [round(100 * math.exp(min(0.0, value))) if is_number(value) else None for value in logprobs],
    }


def _prompt(prompt: Any) -> str:
    """Text, or chat messages as text."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in prompt)


def _shortened(text: str) -> str:
    left_out = len(text) - LONGEST_TEXT
    return text if left_out <= 0 else f"{text[:LONGEST_TEXT]} [... {left_out:,} more characters]"


def _number(value: Any) -> float | None:
    return round(float(value), 3) if is_number(value) else None
