"""Public benchmarks on small files in their real schemas, and on the original's file where it is at hand."""

import json
from pathlib import Path

import pytest

from luffy.data import load_benchmark
from luffy.errors import DataError

ROWS = {
    "aime24": {"id": 60, "problem": "Find x.", "solution": "...", "answer": "204", "url": "...", "year": "2024"},
    "aime25": {"problem": "Find y.", "answer": "70", "id": "0"},
    "amc": {"id": 0, "problem": "Find z.", "answer": 27.0, "url": "..."},
    "math500": {
        "problem": "Add.",
        "solution": "..",
        "answer": "\\frac{1}{2}",
        "subject": "Algebra",
        "unique_id": "a/1",
    },
    "minerva": {"question": "How far?", "answer": "7.6"},
    "olympiad": {"question": "Determine n.", "final_answer": ["$2$"], "id": 1606, "is_multiple_answer": False},
    "gsm8k": {"question": "How many?", "answer": "48/2 = <<48/2=24>>24\n#### 1,072"},
    "arc_c": {
        "id": "Mercury_1",
        "question": "Which?",
        "choices": {"text": ["red", "blue", "green"], "label": ["1", "2", "3"]},
        "answerKey": "2",
    },
    "gpqa_diamond": {
        "Record ID": "rec1",
        "Question": "Which?",
        "Correct Answer": "blue\n",
        "Incorrect Answer 1": "red",
        "Incorrect Answer 2": "green",
        "Incorrect Answer 3": "grey",
    },
    "mmlu_pro": {"question_id": 70, "question": "Which?", "options": ["red", "blue"], "answer": "B", "answer_index": 1},
}
ANSWERS = {
    "aime24": "204",
    "aime25": "70",
    "amc": "27.0",
    "math500": "\\frac{1}{2}",
    "minerva": "7.6",
    "olympiad": "2",
    "gsm8k": "1072",
}


def write(path: Path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_a_row_in_the_real_schema(tmp_path, name):
    write(tmp_path / f"{name}.jsonl", ROWS[name])
    found = load_benchmark(name, place=str(tmp_path))
    (problem,) = found.problems
    if name in ANSWERS:
        assert (problem.answer, found.kind) == (ANSWERS[name], "number" if name == "gsm8k" else "math")
    else:
        assert found.kind == "choice"
        assert f"{problem.answer}. blue\n" in f"{problem.prompt}\n"
    assert not problem.traces


@pytest.mark.parametrize(
    ("name", "row", "match"),
    [
        ("math500", {"question": "x", "answer": "1"}, "row 2: 'problem' must be text"),
        ("math500", {"problem": "x"}, "row 2: 'answer' must be text or a number, got nothing"),
        ("gsm8k", {"question": "x", "answer": "no mark"}, "no final answer after ####"),
        ("arc_c", ROWS["arc_c"] | {"answerKey": "9"}, "'answerKey' is '9'"),
        ("mmlu_pro", ROWS["mmlu_pro"] | {"answer_index": 7}, "correct option is number 7"),
        ("gpqa_diamond", {"Question": "x"}, "'Correct Answer' must be text"),
    ],
)
def test_a_row_that_is_none_is_named(tmp_path, name, row, match):
    path = write(tmp_path / f"{name}.jsonl", ROWS[name], row)
    with pytest.raises(DataError, match=match):
        load_benchmark(name, place=str(path))


def test_the_originals_form_is_recognised_and_repetitions_count_once(tmp_path):
    def row(source, text):
        messages = [{"role": "system", "content": "Think."}, {"role": "user", "content": text}]
        return {"data_source": source, "prompt": messages, "reward_model": {"ground_truth": "1", "style": "rule"}}

    path = write(tmp_path / "all.jsonl", row("aime", "a"), row("aime", "a"), row("amc", "b"), row("aime", "c"))
    problems = load_benchmark("aime24", place=str(path)).problems
    assert [problem.prompt for problem in problems] == ["a", "c"]
    with pytest.raises(DataError, match="has no problem of minerva"):
        load_benchmark("minerva", place=str(path))


def test_rows_of_our_own_form_too(tmp_path):
    write(tmp_path / "math500.jsonl", {"prompt": "x", "answer": "1"})
    assert load_benchmark("math500", place=str(tmp_path)).problems[0].prompt == "x"


def test_the_six_math_sets_of_the_original():
    path = Path(__file__).parents[3] / "shared" / "data" / "benchmarks" / "math_six.parquet"
    if not path.exists():
        pytest.skip("the original's evaluation file is not here")
    counts = {
        name: len(load_benchmark(name, place=str(path)).problems)
        for name in ("aime24", "aime25", "amc", "math500", "minerva", "olympiad")
    }
    assert counts == {"aime24": 30, "aime25": 30, "amc": 83, "math500": 500, "minerva": 272, "olympiad": 675}
