r"""The public benchmarks that go by name: where each is on the hub, and how a row of it becomes a problem.

    aime24, aime25, amc, math500     {"problem": "...", "answer": "204"}
    minerva                          {"question": "...", "answer": "7.6"}
    olympiad                         {"question": "...", "final_answer": ["$2$"]}
    gsm8k                            {"question": "...", "answer": "... #### 72"}
    arc_c                            {"id": "...", "question": "...", "answerKey": "B",
                                      "choices": {"text": ["...", ...], "label": ["A", ...]}}
    gpqa_diamond                     {"Record ID": "...", "Question": "...", "Correct Answer": "...",
                                      "Incorrect Answer 1": "...", ... 3}
    mmlu_pro                         {"question_id": 70, "question": "...", "options": ["...", ...], "answer_index": 8}

A row may also be in our own form, or in that of the original LUFFY code's evaluation files, which repeat a problem for
avg@32: there each counts once, and the system prompt is left out, since the template says what it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luffy.data.choices import choice_problem
from luffy.data.columns import Columns, is_original
from luffy.data.public_sets import convert_gsm8k
from luffy.data.readers import FORMATS, RowSource
from luffy.data.rows import RowError, kind_of, parse_problem
from luffy.errors import DataError
from luffy.types import Problem

OPTIONS_SEED = 0  # of the order of multiple-choice options: the same in every evaluation

Convert = Callable[[Mapping[str, Any], str], Problem]  # (row, identifier)


@dataclass(frozen=True, slots=True)
class PublicBenchmark:
    """A benchmark of the field."""

    summary: str
    hub: str
    subset: str | None
    split: str
    kind: str  # of its verifier
    convert: Convert
    sources: tuple[str, ...]  # how the original's files call it in `data_source`


@dataclass(frozen=True, slots=True)
class FoundProblems:
    """A benchmark's problems and how they are graded."""

    problems: list[Problem]
    kind: str | None = None  # of the verifier; None: the configured one


def _question(question: str, answer: str) -> Convert:
    def convert(row: Mapping[str, Any], identifier: str) -> Problem:
        value = row.get(answer)
        if isinstance(value, list):  # OlympiadBench's subset of single answers has lists of one
            value = ", ".join(str(item) for item in value)
        if not isinstance(value, str | int | float) or not str(value).strip():
            raise RowError(f"{answer!r} must be text or a number, got {kind_of(value)}")
        name = row.get("unique_id", row.get("id"))
        return Problem(identifier if name is None else str(name), _text(row, question), str(value).strip(" $"))

    return convert


def _gsm8k(row: Mapping[str, Any], identifier: str) -> Problem:
    converted = convert_gsm8k(row, identifier).problem
    if converted is None:
        raise RowError("'answer' has no final answer after ####")
    return Problem(converted.id, converted.prompt, converted.answer)


def _arc(row: Mapping[str, Any], identifier: str) -> Problem:
    choices = row.get("choices")
    if not isinstance(choices, dict) or not {"text", "label"} <= choices.keys():
        raise RowError("'choices' must be an object with 'text' and 'label'")
    labels = [str(label) for label in choices["label"]]
    if str(row.get("answerKey")) not in labels:
        raise RowError(f"'answerKey' is {row.get('answerKey')!r}, which is none of {', '.join(labels)}")
    correct = labels.index(str(row["answerKey"]))
    return _choice(row, row.get("id", identifier), "question", choices["text"], correct)


def _gpqa(row: Mapping[str, Any], identifier: str) -> Problem:
    options = [_text(row, key).strip() for key in ("Correct Answer", *(f"Incorrect Answer {n}" for n in (1, 2, 3)))]
    return _choice(row, row.get("Record ID") or identifier, "Question", options, 0)


def _mmlu_pro(row: Mapping[str, Any], identifier: str) -> Problem:
    options, correct = row.get("options"), row.get("answer_index")
    if not isinstance(options, list) or not isinstance(correct, int):
        raise RowError("'options' must be a list and 'answer_index' a number")
    return _choice(row, row.get("question_id", identifier), "question", options, correct)


def _choice(row: Mapping[str, Any], name: Any, question: str, options: Any, correct: int) -> Problem:
    try:
        return choice_problem(
            str(name), _text(row, question), [str(one) for one in options], correct=correct, seed=OPTIONS_SEED
        )
    except DataError as error:
        raise RowError(str(error).rstrip(".")) from None


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"{key!r} must be text, got {kind_of(value) if value != '' else 'an empty string'}")
    return value


_PROBLEM, _QUESTION = _question("problem", "answer"), _question("question", "answer")

PUBLIC_BENCHMARKS: dict[str, PublicBenchmark] = {
    "aime24": PublicBenchmark(
        "30 problems of AIME 2024", "HuggingFaceH4/aime_2024", None, "train", "math", _PROBLEM, ("aime", "aime24")
    ),
    "aime25": PublicBenchmark(
        "30 problems of AIME 2025", "math-ai/aime25", None, "test", "math", _PROBLEM, ("aime25",)
    ),
    "amc": PublicBenchmark(
        "83 problems of AMC 12", "AI-MO/aimo-validation-amc", None, "train", "math", _PROBLEM, ("amc",)
    ),
    "math500": PublicBenchmark(
        "500 problems of MATH", "HuggingFaceH4/MATH-500", None, "test", "math", _PROBLEM, ("math", "math500")
    ),
    "minerva": PublicBenchmark(
        "272 problems of Minerva", "math-ai/minervamath", None, "test", "math", _QUESTION, ("minerva",)
    ),
    "olympiad": PublicBenchmark(
        "674 problems of OlympiadBench, English, mathematics, text only", "Hothan/OlympiadBench", "OE_TO_maths_en_COMP",
        "train", "math", _question("question", "final_answer"), ("olympiad_bench", "olympiad"),
    ),
    "gsm8k": PublicBenchmark(
        "1,319 grade-school word problems", "openai/gsm8k", "main", "test", "number", _gsm8k, ("gsm8k",)
    ),
    "arc_c": PublicBenchmark(
        "1,172 questions of ARC-Challenge", "allenai/ai2_arc", "ARC-Challenge", "test", "choice", _arc,
        ("arc_c", "arc-c", "ARC-Challenge"),
    ),
    "gpqa_diamond": PublicBenchmark(
        "198 questions of GPQA-diamond (gated: accept its terms on the hub first)", "Idavidrein/gpqa", "gpqa_diamond",
        "train", "choice", _gpqa, ("gpqa_diamond", "gpqa"),
    ),
    "mmlu_pro": PublicBenchmark(
        "12,032 questions of MMLU-Pro, up to ten options", "TIGER-Lab/MMLU-Pro", None, "test", "choice", _mmlu_pro,
        ("mmlu_pro", "mmlupro"),
    ),
}  # fmt: skip


def load_public_benchmark(name: str, place: str | None = None) -> FoundProblems:
    """The problems of a public benchmark, each once, in their order.

    place: a file, or a folder with `NAME.parquet`, `NAME.jsonl` or the like or a data set saved there under NAME, or
    with the original's Parquet files; None: the hub. Raises DataError naming file and row for what cannot be used.
    """
    benchmark = PUBLIC_BENCHMARKS[name]
    source = RowSource(benchmark.hub, subset=benchmark.subset, split=benchmark.split)
    if place is not None:
        source = _local_source(name, benchmark, Path(place))
    unique: dict[str, Problem] = {}
    for problem in _problems(name, benchmark, source):
        unique.setdefault(repr(problem.prompt), problem)
    if not unique:
        raise DataError(f"{source.name}: has no problem of {name}.")
    return FoundProblems(_with_own_ids(name, list(unique.values())), benchmark.kind)


def _local_source(name: str, benchmark: PublicBenchmark, place: Path) -> RowSource:
    if not place.exists():
        raise DataError(f"evaluation.source={place}: there is no such file or folder.")
    if place.is_file() or (place / "state.json").exists() or (place / "dataset_dict.json").exists():
        return RowSource(place, split=benchmark.split)
    if (place / name).is_dir():
        return RowSource(place / name, split=benchmark.split)
    named = [place / f"{name}{ending}" for ending in FORMATS if (place / f"{name}{ending}").is_file()]
    holding = named or [file for file in sorted(place.glob("*.parquet")) if _holds(file, benchmark)]
    if not holding:
        raise DataError(
            f"evaluation.source={place}: has neither {name}.parquet, {name}.jsonl nor a Parquet file of the original "
            f"with data_source={benchmark.sources[0]}. To take it from the hub ({benchmark.hub}): leave it out."
        )
    return RowSource(holding[0])


def _holds(file: Path, benchmark: PublicBenchmark) -> bool:
    rows = RowSource(file).rows(lambda _: None)
    return any(isinstance(row, dict) and row.get("data_source") in benchmark.sources for _, row in rows)


def _problems(name: str, benchmark: PublicBenchmark, source: RowSource) -> Iterator[Problem]:
    columns = Columns(None, source.name)
    for number, row in source.rows(lambda _: None):
        if isinstance(row, dict) and is_original(row) and row.get("data_source") not in (None, *benchmark.sources):
            continue
        try:
            yield _problem(f"{name}-{number}", benchmark, row, columns)
        except RowError as error:
            raise DataError(
                f"{source.name}, row {number}: {error}. Expected a row of {name} ({benchmark.hub})."
            ) from None


def _problem(identifier: str, benchmark: PublicBenchmark, row: Any, columns: Columns) -> Problem:
    if isinstance(row, RowError):
        raise row
    if isinstance(row, dict) and not is_original(row) and "prompt" not in row:
        return benchmark.convert(row, identifier)
    problem = parse_problem(columns.translate(row), identifier)
    if isinstance(problem.prompt, str):
        return problem
    said = tuple(message for message in problem.prompt if message["role"] != "system")
    return Problem(problem.id, said[0]["content"] if len(said) == 1 else said, problem.answer)


def _with_own_ids(name: str, problems: list[Problem]) -> list[Problem]:
    """The problems; numbered instead where their ids are not unique."""
    if len({problem.id for problem in problems}) == len(problems):
        return problems
    return [Problem(f"{name}-{n}", one.prompt, one.answer, one.source) for n, one in enumerate(problems, start=1)]
