"""One row in, one `Problem` out, or a `RowError` that says which key is wrong and what was expected.

{"prompt": "What is 17 + 5?", "answer": "22", "traces": ["17 + 5 = 22. #### 22"]}
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from luffy.types import Problem, Prompt, Trace

KNOWN_KEYS = ("prompt", "answer", "id", "source", "traces", "trace")
TRACE_KEYS = ("text", "model", "logprobs")
OTHER_NAMES = {  # what other data sets call our keys
    "prompt": ("question", "problem", "messages", "instruction", "input", "query"),
    "answer": (
        "ground_truth",
        "target",
        "solution",
        "final_answer",
        "expected_answer",
        "gold",
        "reference",
        "label",
        "output",
    ),
}
HIGHEST_LOGPROB = 1e-3  # a log-probability is at most 0; low precision may round it up a little


class RowError(ValueError):
    """Why a row is not a problem; its text is the reason alone, without file and row."""

    content: Any = None  # what the row holds, where it could not even be read


def parse_row(line: bytes, default_id: str) -> Problem:
    """The problem on a line of JSONL. Raises RowError."""
    return parse_problem(parse_line(line), default_id)


def parse_problem(row: Any, default_id: str) -> Problem:
    """The problem that an object with our keys describes. Raises RowError."""
    if not isinstance(row, dict):
        raise RowError(f"expected an object with 'prompt' and 'answer', got {kind_of(row)}")
    _refuse_misspelt(row, KNOWN_KEYS, "")
    for key in ("prompt", "answer"):
        if row.get(key) is None:
            raise RowError(f"there is no {key!r}{_other_name(row, key)}")
    if row.get("traces") is not None and row.get("trace") is not None:
        raise RowError("both 'trace' and 'traces' are given, expected one of them")
    return Problem(
        id=_parse_id(row.get("id"), default_id),
        prompt=_parse_prompt(row["prompt"]),
        answer=_parse_answer(row["answer"]),
        source="" if row.get("source") is None else _text(row["source"], "'source'"),
        traces=_parse_traces(row),
    )


def problem_row(problem: Problem) -> dict[str, Any]:
    """The object that describes a problem, with our keys; `parse_problem` reads it back."""
    row: dict[str, Any] = {"id": problem.id, "prompt": problem.prompt, "answer": problem.answer}
    if not isinstance(problem.prompt, str):
        row["prompt"] = [dict(message) for message in problem.prompt]
    if problem.source:
        row["source"] = problem.source
    if problem.traces:
        row["traces"] = [_trace_value(trace) for trace in problem.traces]
    return row


def _trace_value(trace: Trace) -> str | dict[str, Any]:
    if trace.model is None and trace.logprobs is None:
        return trace.text
    values = {"text": trace.text, "model": trace.model, "logprobs": trace.logprobs}
    return {key: value for key, value in values.items() if value is not None}


def parse_line(line: bytes) -> Any:
    """The JSON value on a line. Raises RowError."""
    try:
        return json.loads(line.decode("utf-8").rstrip(), object_pairs_hook=without_repetition)
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise RowError(
            f"byte {error.start + 1} of the line (0x{byte:02x}) is not UTF-8; save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise RowError(f"not valid JSON: {error.msg} (column {error.colno}); expected one object on the line") from None
    except RecursionError:
        raise RowError("not usable JSON: nested too deeply") from None
    except RowError:
        raise
    except ValueError as error:  # an integer of thousands of digits
        raise RowError(f"not usable JSON: {error}") from None


def without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON parser's pairs. Raises RowError for a key that is given twice."""
    keys = dict(pairs)
    if len(keys) < len(pairs):
        names = [name for name, _ in pairs]
        raise RowError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return keys


def _refuse_misspelt(row: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    """Refuse a key that looks like a known one which the row lacks; other unknown keys are the user's own."""
    for key in row:
        if key not in known:
            close = difflib.get_close_matches(key, [name for name in known if len(name) > 2], n=1, cutoff=0.8)
            if close and close[0] not in row:
                raise RowError(f"{where}unknown key {key!r}. Did you mean {close[0]!r}? If not, rename it")


def _other_name(row: Mapping[str, Any], key: str) -> str:
    other = next((name for name in OTHER_NAMES[key] if name in row), None)
    return f"; rename {other!r} to {key!r} if that is what it holds" if other else ""


def _parse_id(value: Any, default_id: str) -> str:
    if value is None:
        return default_id
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _text(value, "'id'", "a string or an integer")


def _parse_answer(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise RowError(f"'answer' is {value}, expected a string or a finite number")
        return str(value)
    return _text(value, "'answer'", "a string or a number")


def _parse_prompt(value: Any) -> Prompt:
    if not isinstance(value, list):
        return _text(value, "'prompt'", "a string or a list of chat messages")
    if not value:
        raise RowError("'prompt' is an empty list, expected at least one chat message")
    messages = tuple(_parse_message(message, number) for number, message in enumerate(value, start=1))
    if not any(message["content"].strip() for message in messages):
        raise RowError("'prompt' is empty: no message has content")
    if messages[-1]["role"] == "assistant":
        raise RowError("the last message of 'prompt' is the assistant's; put solutions into 'traces'")
    return messages


def _parse_message(message: Any, number: int) -> dict[str, str]:
    where = f"message {number} of 'prompt'"
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RowError(f'{where}: expected an object like {{"role": "user", "content": "..."}}, got {kind_of(message)}')
    if not isinstance(message.get("content"), str):
        raise RowError(f"{where}: 'content' must be a string, got {kind_of(message.get('content'))}")
    foreign = next((key for key, value in message.items() if not isinstance(value, str)), None)
    if foreign is not None:
        raise RowError(f"{where}: {foreign!r} must be a string, got {kind_of(message[foreign])}")
    return {key: _unicode(value, where) for key, value in message.items()}


def _parse_traces(row: Mapping[str, Any]) -> tuple[Trace, ...]:
    if row.get("trace") is not None:
        return (_parse_trace(row["trace"], "'trace'"),)
    traces = row.get("traces")
    if traces is None:
        return ()
    if not isinstance(traces, list):
        raise RowError(f"'traces' must be a list, got {kind_of(traces)}")
    return tuple(_parse_trace(trace, f"trace {number}") for number, trace in enumerate(traces, start=1))


def _parse_trace(trace: Any, where: str) -> Trace:
    if isinstance(trace, str):
        return Trace(_text(trace, where))
    if not isinstance(trace, dict):
        raise RowError(f"{where} must be a string or an object with 'text', got {kind_of(trace)}")
    _refuse_misspelt(trace, TRACE_KEYS, f"{where}: ")
    if trace.get("text") is None:
        raise RowError(f"{where} has no 'text'")
    model = None if trace.get("model") is None else _text(trace["model"], f"{where}: 'model'")
    return Trace(_text(trace["text"], f"{where}: 'text'"), model, _parse_logprobs(trace.get("logprobs"), where))


def _parse_logprobs(values: Any, where: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list):
        raise RowError(f"{where}: 'logprobs' must be a list of numbers, got {kind_of(values)}")
    for number, value in enumerate(values, start=1):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise RowError(f"{where}: logprob {number} must be a number, got {kind_of(value)}")
        if not (value <= HIGHEST_LOGPROB and value >= -1e30):  # also refuses NaN and integers beyond any float
            raise RowError(f"{where}: logprob {number} is {value}, expected a finite number of at most 0")
    return tuple(min(float(value), 0.0) for value in values)


def _text(value: Any, where: str, expected: str = "a string") -> str:
    """A string that is not blank."""
    if not isinstance(value, str):
        raise RowError(f"{where} must be {expected}, got {kind_of(value)}")
    if not value.strip():
        raise RowError(f"{where} is empty")
    return _unicode(value, where)


def _unicode(text: str, where: str) -> str:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: character {error.start + 1} is half of a surrogate pair, not a character") from None
    return text


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "nothing"
    names = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), type(value).__name__)
