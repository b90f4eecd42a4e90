import contextlib
import hashlib
import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luffy.config import DataConfig
from luffy.data import DroppedRow, LoadedProblems, load_problems, load_training_problems
from luffy.data.rows import RowError, parse_row
from luffy.errors import DataError, LuffyError
from luffy.types import Problem, Trace

GOOD = {"prompt": "17+5", "answer": "22"}


def message(error):
    return str(error.value)


def test_every_form_of_a_row(write_rows):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "17+5"}]
    path = write_rows(
        GOOD,
        {"prompt": messages, "answer": 22, "id": "a", "source": "sums", "traces": ["17+5=22#22", {"text": "#22"}]},
        {"prompt": "x", "answer": 2.5, "id": 7, "trace": {"text": "#2.5", "model": "t", "logprobs": [-1, -0.5, 0]}},
        {"prompt": "x", "answer": "y", "id": None, "source": None, "traces": None, "trace": "#y", "difficulty": [1]},
    )
    loaded = load_problems(path)
    assert loaded.problems == [
        Problem("row-1", "17+5", "22"),
        Problem("a", tuple(messages), "22", "sums", (Trace("17+5=22#22"), Trace("#22"))),
        Problem("7", "x", "2.5", "", (Trace("#2.5", "t", (-1.0, -0.5, 0.0)),)),
        Problem("row-4", "x", "y", "", (Trace("#y"),)),
    ]
    assert loaded.rows == [1, 2, 3, 4]
    assert loaded.dropped == []
    assert loaded.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.where(1) == f"{path}, row 2"


BAD_ROWS = {
    "broken JSON": ('{"prompt": "x", "answer": ', "not valid JSON: Expecting value (column 26)"),
    "pretty-printed JSON": ("{", "expected one object on the line"),
    "array": ([GOOD], "expected an object with 'prompt' and 'answer', got a list"),
    "text": ('"x"', "got a string"),
    "deeply nested": ("[" * 200_000, "nested too deeply"),
    "endless integer": ('{"prompt": "x", "answer": ' + "9" * 5000 + "}", "not usable JSON"),
    "key twice": ('{"prompt": "x", "answer": "1", "answer": "2"}', "key 'answer' is given twice"),
    "no prompt": ({"answer": "1"}, "there is no 'prompt'"),
    "no answer": ({"prompt": "x"}, "there is no 'answer'"),
    "null answer": ({"prompt": "x", "answer": None}, "there is no 'answer'"),
    "other name": ({"question": "x", "answer": "1"}, "there is no 'prompt'; rename 'question' to 'prompt'"),
    "empty prompt": (GOOD | {"prompt": " \n"}, "'prompt' is empty"),
    "no messages": (GOOD | {"prompt": []}, "'prompt' is an empty list"),
    "empty messages": (GOOD | {"prompt": [{"role": "user", "content": ""}]}, "'prompt' is empty"),
    "prompt type": (GOOD | {"prompt": 3}, "'prompt' must be a string or a list of chat messages, got a number"),
    "message type": (GOOD | {"prompt": ["x"]}, "message 1 of 'prompt': expected an object like"),
    "message without role": (GOOD | {"prompt": [{"content": "x"}]}, "message 1 of 'prompt': expected an object like"),
    "content type": (GOOD | {"prompt": [{"role": "user", "content": [{}]}]}, "'content' must be a string, got a list"),
    "message extra": (GOOD | {"prompt": [{"role": "user", "content": "x", "n": 1}]}, "'n' must be a string"),
    "ends with answer": (
        GOOD | {"prompt": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        "put solutions into 'traces'",
    ),
    "empty answer": (GOOD | {"answer": ""}, "'answer' is empty"),
    "answer type": (GOOD | {"answer": ["1"]}, "'answer' must be a string or a number, got a list"),
    "truth as answer": (GOOD | {"answer": True}, "'answer' must be a string or a number, got a truth value"),
    "NaN as answer": (GOOD | {"answer": float("nan")}, "'answer' is nan"),
    "id type": (GOOD | {"id": 1.5}, "'id' must be a string or an integer"),
    "empty id": (GOOD | {"id": ""}, "'id' is empty"),
    "source type": (GOOD | {"source": 1}, "'source' must be a string, got a number"),
    "misspelt key": (GOOD | {"traecs": ["#22"]}, "unknown key 'traecs'. Did you mean 'traces'?"),
    "traces type": (GOOD | {"traces": "#22"}, "'traces' must be a list, got a string"),
    "trace type": (GOOD | {"traces": ["#22", 3]}, "trace 2 must be a string or an object with 'text', got a number"),
    "empty trace": (GOOD | {"traces": [""]}, "trace 1 is empty"),
    "trace and traces": (GOOD | {"trace": "#22", "traces": []}, "both 'trace' and 'traces' are given"),
    "trace without text": (GOOD | {"traces": [{"model": "t"}]}, "trace 1 has no 'text'"),
    "misspelt trace key": (GOOD | {"trace": {"text": "#", "logprob": []}}, "'trace': unknown key 'logprob'"),
    "logprobs type": (GOOD | {"trace": {"text": "#", "logprobs": "x"}}, "'logprobs' must be a list of numbers"),
    "logprob type": (GOOD | {"trace": {"text": "#", "logprobs": [0, None]}}, "logprob 2 must be a number, got nothing"),
    "NaN logprob": (GOOD | {"trace": {"text": "#", "logprobs": [float("nan")]}}, "logprob 1 is nan"),
    "infinite logprob": (GOOD | {"trace": {"text": "#", "logprobs": [float("-inf")]}}, "logprob 1 is -inf"),
    "positive logprob": (GOOD | {"trace": {"text": "#", "logprobs": [-1, 0.5]}}, "logprob 2 is 0.5"),
    "huge logprob": (GOOD | {"trace": {"text": "#", "logprobs": [-(10**400)]}}, "expected a finite number"),
    "wrong encoding": ('{"prompt": "é", "answer": "1"}'.encode("latin-1"), "byte 13 of the line (0xe9) is not UTF-8"),
    "half a surrogate pair": ('{"prompt": "x\\ud800", "answer": "1"}', "half of a surrogate pair"),
}


@pytest.mark.parametrize(("row", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_bad_row_is_refused_or_dropped_by_name(write_rows, row, reason):
    path = write_rows(GOOD, row, GOOD)
    with pytest.raises(DataError) as error:
        load_problems(path)
    assert message(error).startswith(f"{path}, row 2: ")
    assert reason in message(error)
    assert message(error).endswith("data.on_bad_row=drop")
    loaded = load_problems(path, on_bad_row="drop")
    assert loaded.rows == [1, 3]
    assert [item.row for item in loaded.dropped] == [2]
    assert reason in loaded.dropped[0].reason


def test_duplicate_id_names_both_rows(write_rows):
    path = write_rows(GOOD | {"id": "a"}, GOOD, GOOD | {"id": "a"})
    with pytest.raises(DataError, match="row 3: id 'a' is already used in row 1"):
        load_problems(path)
    loaded = load_problems(path, on_bad_row="drop")
    assert loaded.dropped == [DroppedRow(3, "id 'a' is already used in row 1", duplicate_of=1)]


def test_refusal_counts_the_other_bad_rows(write_rows):
    path = write_rows("x", GOOD, "y", "z")
    with pytest.raises(DataError, match=r"row 1: .* 2 more bad rows; `luffy data check"):
        load_problems(path)


def test_file_without_any_good_row_is_refused_even_when_dropping(write_rows):
    with pytest.raises(DataError, match=r"none of its 2 rows is a problem. Row 1: not valid JSON"):
        load_problems(write_rows("x", "y"), on_bad_row="drop")


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"  \r\n"])
def test_empty_file(tmp_path, content):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"empty\.jsonl: the file is empty"):
        load_problems(path)


def test_byte_order_mark_windows_line_ends_and_blank_lines_are_accepted(write_rows):
    path = write_rows(b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), b"", GOOD, separator=b"\r\n")
    loaded = load_problems(path)
    assert [problem.prompt for problem in loaded.problems] == ["17+5", "17+5"]
    assert loaded.rows == [1, 3]


def test_last_line_may_lack_its_end(tmp_path):
    path = tmp_path / "cut.jsonl"
    path.write_text(json.dumps(GOOD))
    assert len(load_problems(path).problems) == 1


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (json.dumps(GOOD).encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PAR1\x15\x04", "Parquet"),
        (b"PK\x03\x04", "zip"),
    ],
)
def test_file_of_another_kind_is_named(tmp_path, content, what):
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"train.jsonl: is .*{what}"):
        load_problems(path, on_bad_row="drop")


def test_folder_instead_of_a_file(write_rows):
    path = write_rows(GOOD)
    with pytest.raises(DataError, match=r"is a folder, expected a file or .*It holds .*train\.jsonl"):
        load_problems(path.parent)


def test_missing_file_suggests_the_nearest(write_rows):
    path = write_rows(GOOD)
    with pytest.raises(DataError, match=r"trian\.jsonl: there is no such file\. Did you mean '.*/train\.jsonl'"):
        load_problems(path.with_name("trian.jsonl"))
    with pytest.raises(DataError, match="There is no folder"):
        load_problems(path.parent / "nowhere" / "train.jsonl")
    with pytest.raises(DataError, match="Did you mean 'miniature'"):
        load_problems("miniatur")
    with pytest.raises(DataError, match="cannot be read"):
        load_problems("a\0b")


@given(content=st.binary(max_size=300))
def test_any_bytes_load_or_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes", numbered=True) / "x.jsonl"
    path.write_bytes(content)
    with contextlib.suppress(LuffyError):
        assert isinstance(load_problems(path, on_bad_row="drop"), LoadedProblems)


KEYS = st.sampled_from(["prompt", "answer", "id", "source", "traces", "trace", "text", "logprobs", "role", "content"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, JSON))
def test_any_object_is_a_problem_or_has_a_reason(row):
    with contextlib.suppress(RowError):
        problem = parse_row(json.dumps(row).encode(), default_id="row-1")
        assert problem.id
        assert problem.prompt
        assert problem.answer


def test_training_source_is_the_miniature_or_a_file(write_rows):
    config = DataConfig(miniature={"problems": 5, "traced": 3})
    loaded = load_training_problems(config)
    assert [len(problem.traces) for problem in loaded.problems] == [1, 1, 1, 0, 0]
    assert loaded.where(0) == "problem 'train-0'"
    other = load_training_problems(DataConfig(miniature={"problems": 5, "traced": 4}))
    assert loaded.digest != other.digest
    assert loaded.digest == load_training_problems(config).digest
    path = write_rows(GOOD, "x")
    assert len(load_training_problems(DataConfig(train=str(path), on_bad_row="drop")).problems) == 1
    with pytest.raises(DataError, match="row 2"):
        load_training_problems(DataConfig(train=str(path)))


@pytest.mark.parametrize(
    ("problems", "reason"),
    [
        ([], "the list of problems is empty"),
        ([Problem("a", "x", "1"), Problem("a", "y", "2")], "'a': the id is used twice"),
        ([Problem("a", "", "1")], "prompt must be text"),
        ([Problem("a", "x", 1)], "answer must be text and not empty, got 1"),
        ([Problem("a", "x", "1", traces=("#1",))], "traces must be Trace objects"),
    ],
)
def test_problems_made_in_python_are_checked(problems, reason):
    with pytest.raises(DataError, match=reason):
        LoadedProblems.of(problems)


def test_data_imports_neither_torch_nor_transformers():
    program = "import sys, luffy.data; print([m for m in ('torch', 'transformers', 'rich') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
