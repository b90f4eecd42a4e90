"""Problems of reasoning-gym's procedural tasks: any task, with any of its parameters.

The reference answer is a JSON text that the verifier `reasoning_gym` gives to the task's own scorer:

    {"task": "chain_sum", "answer": "-14282", "metadata": {...}, "parameters": {"min_terms": 2}}

Tuples are written as {"tuple": [...]}, since some scorers tell them from lists. For another verifier it is the task's
plain answer. Few tasks yield a worked solution (`WORKED_SOLUTIONS`); their problems get it as a trace, the others have
none and are trained on-policy.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from luffy.config import nearest
from luffy.data.public_sets import Converted, LeftOut
from luffy.errors import ConfigError
from luffy.reward.answers import final_answer
from luffy.types import Problem, Trace

DEFAULT_SEED = 0


def running_sum(metadata: Mapping[str, Any]) -> str:
    """`5 - 2 + 4` worked out from left to right, a line a step: `5 - 2 = 3`, `3 + 4 = 7`, `#### 7`."""
    first, *rest = metadata["expression"].split()
    total, lines = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        before, total = total, total + int(term) if sign == "+" else total - int(term)
        lines.append(f"{before} {sign} {term} = {total}")
    return "\n".join([*lines, f"#### {total}"])


WORKED_SOLUTIONS: dict[str, Callable[[Mapping[str, Any]], str]] = {  # from the metadata; each ends in `#### answer`
    "gsm_symbolic": lambda metadata: str(metadata["answer_cot"]),
    "chain_sum": running_sum,
}


def procedural_problems(
    task: str, parameters: Mapping[str, Any], *, plain_answers: bool = False
) -> tuple[int, Iterator[Converted]]:
    """How many problems of a task there are, and the problems.

    parameters: of the task's configuration, `size` and `seed` (0 where it is not given) among them. plain_answers: the
    references are the task's answers themselves, for another verifier than its scorer. Raises ConfigError for an
    unknown task or parameter, for a value that the task refuses, and without the package reasoning-gym.
    """
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(
            f"reasoning-gym:{task} needs the package reasoning-gym ({error}). "
            "Install it with: pip install 'luffy-rl[reasoning-gym]'"
        ) from None
    if task not in DATASETS:
        raise ConfigError(f"reasoning-gym has no task {task!r}.{nearest(task, DATASETS)}")
    known = [field.name for field in dataclasses.fields(DATASETS[task][1])]
    for key in parameters:
        if key not in known:
            hint = nearest(key, known)
            raise ConfigError(f"reasoning-gym:{task} has no parameter {key!r}.{hint} Known: {', '.join(known)}.")
    given = {"seed": DEFAULT_SEED, **parameters}
    try:
        dataset = reasoning_gym.create_dataset(task, **given)
    except Exception as error:  # each task checks its parameters in its own way
        raise ConfigError(f"reasoning-gym:{task}: {type(error).__name__}: {error}") from None
    return len(dataset), _convert(task, dataset, given, plain_answers)


def _convert(task: str, dataset: Any, parameters: Mapping[str, Any], plain_answers: bool) -> Iterator[Converted]:
    own = {key: value for key, value in parameters.items() if key not in ("seed", "size")}
    for index in range(len(dataset)):
        entry = dataset[index]
        answer = _reference(task, entry, own)
        kept = entry | {"metadata": _restored(json.loads(answer)["metadata"])}
        if entry["answer"] is not None and dataset.score_answer(entry["answer"], kept) < 1:
            yield Converted(None, (LeftOut("the task's own answer is not right by its scorer", str(entry["answer"])),))
            continue
        if plain_answers and entry["answer"] is None:
            yield Converted(None, (LeftOut("no single answer: only the task's own scorer can grade it"),))
            continue
        answer = str(entry["answer"]) if plain_answers else answer
        traces, left_out = _traces(task, entry, dataset)
        identifier = f"{task}-{parameters['seed']}-{index}"
        yield Converted(Problem(identifier, entry["question"], answer, f"reasoning-gym/{task}", traces), left_out)


def _traces(task: str, entry: Mapping[str, Any], dataset: Any) -> tuple[tuple[Trace, ...], tuple[LeftOut, ...]]:
    if task not in WORKED_SOLUTIONS:
        return (), ()
    worked = WORKED_SOLUTIONS[task](entry["metadata"])
    if dataset.score_answer(final_answer(worked), entry) < 1:
        return (), (LeftOut("trace that is not right", worked[-60:], 1),)
    return (Trace(worked, f"reasoning-gym/{task}"),), ()


def _reference(task: str, entry: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    reference = {"task": task, "answer": entry["answer"], "metadata": _plain(entry["metadata"])}
    if parameters:
        reference["parameters"] = _plain(dict(parameters))
    return json.dumps(reference, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it; a tuple keeps its kind, and what JSON has no word for, as a fraction, is text."""
    if isinstance(value, tuple):
        return {"tuple": [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, str | int | float | None):
        return value
    return _plain(value.tolist()) if hasattr(value, "tolist") else str(value)  # arrays and numbers of numpy


def _restored(value: Any) -> Any:
    if isinstance(value, list):
        return [_restored(item) for item in value]
    if isinstance(value, dict):
        restored = {key: _restored(item) for key, item in value.items()}
        return tuple(restored["tuple"]) if restored.keys() == {"tuple"} else restored
    return value
