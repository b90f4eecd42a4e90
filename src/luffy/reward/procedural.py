"""Answers of reasoning-gym's procedural tasks, scored by the task's own scorer.

The reference answer of such a problem is a JSON object, since the scorer needs more than a text:

    {"task": "countdown", "answer": "58 + 84 - 48", "metadata": {"numbers": [58, 84, 48], "target": 94}}

`reasoning_gym_answer` writes it. `answer` is null for a task that yields no solution of its own. `parameters`, those of
the task's configuration, is there if they are not the defaults. Tuples are written as {"tuple": [...]}.

The completion's answer is what stands in its last <answer> </answer>, else in its last box, else after its last `####`,
else all of it. It is correct when its score reaches the threshold, 1 by default: the scorers give part of a point for
an answer inside a sentence or a partly right one.

Some scorers hand an answer to Python's `eval`, or to sympy, which does the same. For tasks whose module contains such
a call, an answer that could run something (a call of anything but a mathematical function, an attribute, a name with
`__`) is wrong before it is scored, and a reference that could is a failure.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from luffy.errors import ConfigError, DataError
from luffy.reward.answers import boxed_answers

Scorer = Callable[[str | None, dict[str, Any]], float]

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_TUPLE = "tuple"
_RUNS_CODE = re.compile(r"\b(?:eval|exec|parse_expr|sympify|literal_eval)\(")
_HARMLESS_CALL = re.compile(
    r"a?(?:sin|cos|tan|sec|csc|cot)h?|atan2|exp|log|ln|sqrt|cbrt|[aA]bs|erfi?|floor|ceiling|[mM]in|[mM]ax|gcd|lcm|"
    r"Integral|Rational|[A-Za-z]"
)
_HARMLESS_NODES = (
    ast.Expression, ast.Constant, ast.Name, ast.Load, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.UnaryOp, ast.BinOp,
    ast.BoolOp, ast.Compare, ast.Call, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_CALL = re.compile(r"([^\W\d]\w*)\s*\(")
_UNREADABLE_RISK = re.compile(r"__|[)\]]\s*\(|[\"'#\\]|[^\W\d]\w*\s*\.\s*[^\W\d]")  # in what Python cannot parse


def reasoning_gym_answer(task: str, entry: Mapping[str, Any], parameters: Mapping[str, Any] | None = None) -> str:
    """The reference answer of a problem made of a reasoning-gym entry, for `Problem.answer`.

    entry: as `reasoning_gym.create_dataset(task, ...)` yields it. Raises DataError when its metadata is no plain data.
    """
    reference = {"task": task, "answer": entry["answer"], "metadata": _plain(entry["metadata"])}
    if parameters:
        reference["parameters"] = _plain(dict(parameters))
    try:
        return json.dumps(reference, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"reasoning-gym task {task!r}: its metadata cannot be written as JSON ({error}).") from None


def score_reasoning_gym(completion_text: str, answer: str) -> tuple[float, str]:
    """The score in [0, 1] that the task gives a completion, and the answer that was scored.

    Raises DataError for a reference that is not of the form above, ConfigError without the package reasoning-gym.
    """
    reference = _read(answer)
    given = _final_answer(completion_text)
    score = _scorer(reference["task"], json.dumps(reference.get("parameters", {}), sort_keys=True))
    if _runs_code(reference["task"]):
        if any(map(_could_run, _texts([reference["answer"], reference["metadata"]]))):
            raise DataError(f"the reference of task {reference['task']!r} holds what its scorer would run as code")
        if _could_run(given):
            return 0.0, given
    entry = {"question": "", "answer": reference["answer"], "metadata": _restored(reference["metadata"])}
    return float(score(given, entry)), given


def _read(answer: str) -> dict[str, Any]:
    try:
        reference = json.loads(answer)
    except ValueError:
        reference = None
    keys = {"task": str, "answer": str | None, "metadata": dict}
    if not isinstance(reference, dict) or not all(isinstance(reference.get(key), kind) for key, kind in keys.items()):
        raise DataError('the reference answer is not a JSON object {"task": ..., "answer": ..., "metadata": {...}}')
    return reference


def _final_answer(text: str) -> str:
    tagged = _ANSWER_TAG.findall(text)
    if tagged:
        return str(tagged[-1]).strip()
    boxed = boxed_answers(text)
    if boxed:
        return boxed[-1].strip()
    return text.rpartition("####")[2].strip()


@functools.lru_cache(maxsize=64)
def _scorer(task: str, parameters: str) -> Scorer:
    from luffy.config import nearest

    datasets = _datasets()
    if task not in datasets:
        raise DataError(f"reasoning-gym has no task {task!r}.{nearest(task, datasets)}")
    dataset, configuration = datasets[task]
    scorer: Scorer = dataset(config=configuration(**json.loads(parameters))).score_answer
    return scorer


@functools.cache
def _runs_code(task: str) -> bool:
    dataset, _ = _datasets()[task]
    module = sys.modules[dataset.score_answer.__module__]
    return _RUNS_CODE.search(inspect.getsource(module)) is not None


def _datasets() -> dict[str, tuple[Any, Any]]:
    try:
        import reasoning_gym
        from reasoning_gym.factory import DATASETS
    except ImportError as error:
        raise ConfigError(
            f"reward.kind=reasoning_gym needs the package reasoning-gym ({error}). "
            "Install it with: pip install 'luffy-rl[reasoning-gym]'"
        ) from None
    assert reasoning_gym  # the import fills the table
    return dict(DATASETS)


def _could_run(text: str) -> bool:
    """Whether evaluating this text could do more than compute with numbers, names and mathematical functions.

    Text that is no Python expression is looked at as text: sympy rewrites some of it (`5!`) before it evaluates.
    """
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except SyntaxError:
        calls = (match[1] for match in _CALL.finditer(text))
        return "(" in text and (
            _UNREADABLE_RISK.search(text) is not None or not all(map(_HARMLESS_CALL.fullmatch, calls))
        )
    except (ValueError, RecursionError, MemoryError):
        return True
    return not all(map(_harmless, nodes))


def _harmless(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and _HARMLESS_CALL.fullmatch(node.func.id) is not None
    return isinstance(node, _HARMLESS_NODES) and not (isinstance(node, ast.Name) and "__" in node.id)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for item in value.values() for text in _texts(item))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in _texts(item))


def _plain(value: Any) -> Any:
    """The value as JSON can hold it; a tuple keeps its kind, which some scorers compare."""
    if isinstance(value, tuple):
        return {_TUPLE: [_plain(item) for item in value]}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping) else value


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping):
        if value.keys() == {_TUPLE}:
            return tuple(_restored(item) for item in value[_TUPLE])
        return {key: _restored(item) for key, item in value.items()}
    return [_restored(item) for item in value] if isinstance(value, list) else value
