"""The groups of the page: problems with their rollouts and traces, rewards, advantages and tokens.

For every method, the first seed that saved rollouts. Where the saved steps do not all fit, steps are left out evenly,
never chosen by what is in them, so that the sample does not flatter. Of long completions, the tokens of the beginning
are kept and the rest is counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luffy.comparison.collect import Comparison, Run, is_number
from luffy.files import read_lines, taken_as_written
from luffy.report.embed import embedded_size

MOST_STEPS = 40  # saved steps of a method that are read
LONGEST_TEXT = 6_000  # characters of a completion that are shown
LONGEST_TOKENS = 800  # tokens of a completion that are shown one by one

Line = Mapping[str, Any]


def sample_groups(comparison: Comparison, budget: int) -> list[dict[str, Any]]:
    """Groups of every method as plain JSON values; the texts are as the model wrote them, not escaped.

    budget: bytes that they may take in the page.
    """
    share = budget // max(1, len(comparison.methods))
    return [group for method, runs in comparison.methods.items() for group in _of_method(method, runs, share)]


def saved_files(runs: Sequence[Run], kind: str) -> list[tuple[int, Path]]:
    """(step, file) of the first of the runs that has any; kind: `rollouts` or `traces`."""
    for run in runs:
        if found := sorted(run.folder.glob(f"{kind}/step-*.jsonl")):
            steps = [(path.stem.removeprefix("step-"), path) for path in found]
            return [(int(step), path) for step, path in steps if step.isdecimal()]  # others are none of a run's
    return []


def read_groups(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of rollouts. Raises RunError where problem and rollouts are none."""
    lines = read_lines(path)
    with taken_as_written(path):
        for line in lines:
            parts = [line.get("problem") or {}, *(line.get("rollouts") or ())]
            if not all(isinstance(part, dict) for part in parts):
                raise TypeError("a problem and rollouts are objects")
    return lines


def thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many of the items, evenly, with the first and the last; most: > 0."""
    if len(items) <= most:
        return list(items)
    last = len(items) - 1
    return [items[round(place * last / max(1, most - 1))] for place in range(most)]


def _of_method(method: str, runs: Sequence[Run], budget: int) -> list[dict[str, Any]]:
    steps = []
    for step, path in thinned(saved_files(runs, "rollouts"), MOST_STEPS):
        with taken_as_written(path):
            groups = [shown_group(line, method, step) for line in read_groups(path)]
        steps.append((groups, sum(map(embedded_size, groups))))
    most = len(steps)
    while most > 2 and sum(size for _, size in thinned(steps, most)) > budget:
        most -= 1
    left = [groups for groups, _ in thinned(steps, most)] if steps else []
    share = budget // len(left) if most <= 2 and left else budget
    return [group for groups in left for group in _within(groups, share)]


def _within(groups: Sequence[dict[str, Any]], budget: int) -> list[dict[str, Any]]:
    """The first groups of a step, as many as there is room for."""
    kept = []
    for group in groups:
        budget -= embedded_size(group)
        if budget < 0:
            break
        kept.append(group)
    return kept


def shown_group(line: Line, method: str, step: int) -> dict[str, Any]:
    """A line of a file of rollouts as the page needs it."""
    problem = line.get("problem") or {}
    return {
        "method": method,
        "step": step,
        "id": str(problem.get("id", "")),
        "prompt": shortened(prompt_text(problem.get("prompt", ""))),
        "answer": shortened(str(problem.get("answer", ""))),
        "rollouts": [_rollout(rollout) for rollout in line.get("rollouts") or ()],
    }


def _rollout(rollout: Line) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "trace": bool(rollout.get("off_policy")),
        "reward": _number(rollout.get("reward")),
        "advantage": _number(rollout.get("advantage")),
        "finished": bool(rollout.get("finished", True)),
    }
    tokens, logprobs = rollout.get("tokens"), rollout.get("logprobs")
    if not tokens or not logprobs or len(logprobs) != len(tokens):
        return shown | {"text": shortened(str(rollout.get("text", "")))}
    shown["tokens"] = [str(token) for token in tokens[:LONGEST_TOKENS]]
    shown["logprobs"] = hundredths(logprobs[:LONGEST_TOKENS])
    if len(tokens) > LONGEST_TOKENS:
        shown["more"] = len(tokens) - LONGEST_TOKENS
    for name in ("entropy", "teacher_logprobs"):
        values = rollout.get(name)
        if values and len(values) == len(tokens):
            shown[name] = hundredths(values[:LONGEST_TOKENS])
    return shown


def hundredths(values: Sequence[Any]) -> list[int | None]:
    """Nats as whole hundredths, which a page needs no finer; null where the number is none."""
    return [round(100 * value) if is_number(value) else None for value in values]


def prompt_text(prompt: Any) -> str:
    """Text, or chat messages as text."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message.get('role', '')}: {message.get('content', '')}" for message in prompt)


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """The beginning of a text, and how much is left out."""
    left_out = len(text) - longest
    return text if left_out <= 0 else f"{text[:longest]} [... {left_out:,} more characters]"


def _number(value: Any) -> float | None:
    return round(float(value), 3) if is_number(value) else None
