"""The same problems in every format, the mapping of columns, the original's files, and what can be wrong with each."""

import contextlib
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luffy.config import ColumnsConfig, load_config
from luffy.data import LoadedProblems, load_problems, load_training_problems
from luffy.errors import ConfigError, DataError, LuffyError
from luffy.types import Problem, Trace

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Wie groß ist 17+5?"}]
ROWS = [
    {"id": "a", "prompt": "17+5", "answer": "22", "source": "sums", "traces": ['17+5=22, "so"\n#22', "#22"]},
    {"id": "b", "prompt": MESSAGES, "answer": "22", "source": None, "traces": None},
]
PROBLEMS = [
    Problem("a", "17+5", "22", "sums", (Trace('17+5=22, "so"\n#22'), Trace("#22"))),
    Problem("b", tuple(MESSAGES), "22"),
]
BENCHMARKS = Path(__file__).parents[3] / "shared/data/benchmarks/math_six.parquet"


def write_csv(path, header, *rows, encoding="utf-8", delimiter=",", line_end="\n"):
    def quoted(field):
        text = field if isinstance(field, str) else "" if field is None else json.dumps(field)
        return '"' + text.replace('"', '""') + '"'

    lines = [delimiter.join(header), *(delimiter.join(map(quoted, row)) for row in rows)]
    path.write_bytes((line_end.join(lines) + line_end).encode(encoding))
    return path


def write_parquet(path, rows, schema=None):
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path)
    return path


def text_messages(rows):
    """The rows with all prompts as messages: a Parquet column has one type."""
    return [
        row | {"prompt": row["prompt"] if isinstance(row["prompt"], list) else [{"role": "user", "content": "17+5"}]}
        for row in rows
    ]


@pytest.fixture(params=["jsonl", "json", "json with a list inside", "json lines named .json", "csv", "tsv"])
def text_file(request, tmp_path):
    if request.param in ("csv", "tsv"):
        rows = [list(row.values()) for row in ROWS]
        mark = "\t" if request.param == "tsv" else ","
        return write_csv(tmp_path / f"problems.{request.param}", ROWS[0], *rows, delimiter=mark)
    path = tmp_path / f"problems.{request.param.partition(' ')[0]}"
    if request.param == "jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    elif request.param == "json":
        path.write_text(json.dumps(ROWS, indent=2))
    elif request.param == "json with a list inside":
        path.write_text(json.dumps({"version": 1, "data": ROWS}))
    else:
        path = path.with_suffix(".json")
        path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


def test_text_formats_say_the_same(text_file):
    loaded = load_problems(text_file)
    assert loaded.problems == PROBLEMS
    assert loaded.rows == ([2, 3] if text_file.suffix in (".csv", ".tsv") else [1, 2])


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("delimiter", [",", ";"])
def test_csv_as_spreadsheets_write_it(tmp_path, line_end, delimiter):
    path = tmp_path / "sheet.csv"
    write_csv(
        path, ["prompt", "answer"], ["a, b; c", "1"], ["", ""], ["two\nlines", "x"],
        encoding="utf-8-sig", delimiter=delimiter, line_end=line_end,
    )  # fmt: skip
    loaded = load_problems(path)
    assert [(problem.prompt, problem.answer) for problem in loaded.problems] == [("a, b; c", "1"), ("two\nlines", "x")]
    assert loaded.rows == [2, 4]  # as the spreadsheet counts: the header is row 1, row 3 is blank


def test_parquet_and_saved_data_set_say_the_same(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = text_messages(ROWS)
    expected = [Problem("a", ({"role": "user", "content": "17+5"},), "22", "sums", PROBLEMS[0].traces), PROBLEMS[1]]
    assert load_problems(write_parquet(tmp_path / "problems.parquet", rows)).problems == expected
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(rows)
    saved.save_to_disk(tmp_path / "saved")
    assert load_problems(tmp_path / "saved").problems == expected
    datasets.DatasetDict({"test": saved}).save_to_disk(tmp_path / "splits")
    assert load_problems(tmp_path / "splits", split="test").problems == expected
    with pytest.raises(DataError, match=r"has no split 'train', only test. .* data.split=test"):
        load_problems(tmp_path / "splits")


def test_digest_changes_with_the_content(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [{"prompt": "1+1", "answer": "2"}])
    before = load_problems(path).digest
    assert before == load_problems(path).digest
    write_parquet(path, [{"prompt": "1+1", "answer": "3"}])
    assert before != load_problems(path).digest


def test_numbers_of_other_types(tmp_path):
    from decimal import Decimal

    import numpy as np

    schema = pyarrow.schema(
        [("prompt", pyarrow.string()), ("answer", pyarrow.decimal128(5, 2)), ("trace", pyarrow.string()),
         ("lp", pyarrow.list_(pyarrow.float16()))]
    )  # fmt: skip
    rows = [{"prompt": "x", "answer": Decimal("2.50"), "trace": "#2.50", "lp": [np.float16(-0.5), np.float16(0)]}]
    path = write_parquet(tmp_path / "x.parquet", rows, schema)
    problem = load_problems(path, columns=ColumnsConfig(traces="trace", logprobs="lp")).problems[0]
    assert problem.answer == "2.50"
    assert problem.traces == (Trace("#2.50", None, (-0.5, 0.0)),)


def test_arrays_of_numpy_inside_a_row_are_lists():
    import numpy as np

    from luffy.data.readers import plain

    row = {"target": np.array([{"content": "x"}], dtype=object), "index": np.int64(3), "p": np.array([0.5, 1.0])}
    assert plain(row) == {"target": [{"content": "x"}], "index": 3, "p": [0.5, 1.0]}
    assert type(plain(row)["index"]) is int


# The mapping of columns


def test_mapping_with_nested_columns_and_several_traces(write_rows):
    path = write_rows(
        {
            "question": "17+5", "reward_model": {"ground_truth": "22"}, "first": "#22", "second": ["#22 ", "# 22"],
            "who": ["a", "b", "c"], "lp": [[-1, 0], [-2], [-3]], "traecs": "mine", "key": 7,
        }
    )  # fmt: skip
    columns = ColumnsConfig(
        prompt="question", answer="reward_model.ground_truth", traces=("first", "second"), model="who", logprobs="lp",
        id="key",
    )  # fmt: skip
    assert load_problems(path, columns=columns).problems == [
        Problem(
            "7", "17+5", "22", "",
            (Trace("#22", "a", (-1.0, 0.0)), Trace("#22 ", "b", (-2.0,)), Trace("# 22", "c", (-3.0,))),
        )
    ]  # fmt: skip


def test_mapping_reaches_into_lists_and_takes_the_assistants_messages(write_rows):
    turns = [{"role": "user", "content": "17+5"}, {"role": "assistant", "content": "#22"}]
    path = write_rows({"messages": turns, "gold": 22})
    columns = ColumnsConfig(prompt="messages.0.content", answer="gold", traces="messages")
    assert load_problems(path, columns=columns).problems == [Problem("row-1", "17+5", "22", "", (Trace("#22"),))]


def test_mapping_in_a_recipe_and_on_the_command_line(tmp_path):
    path = write_csv(tmp_path / "train.csv", ["question", "gold", "worked"], ["17+5", "22", "[1, 2]: #22"], ["x", "1"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"data:\n  train: {path}\n  columns: {{prompt: question, answer: gold}}\n")
    path.write_text("\n".join(path.read_text().splitlines()[:2]))
    config = load_config(recipe, ["data.columns.traces=worked"])
    assert load_training_problems(config.data).problems == [Problem("row-2", "17+5", "22", "", (Trace("[1, 2]: #22"),))]
    with pytest.raises(ConfigError, match=r"unknown key 'data.columns.promt'. Did you mean 'data.columns.prompt'"):
        load_config(recipe, ["data.columns.promt=question"])


def test_missing_column_is_named_once_with_the_nearest(tmp_path, write_rows):
    sheet = write_csv(tmp_path / "x.csv", ["question", "answr"], ["17+5", "22"])
    with pytest.raises(DataError, match=r"x\.csv: there is no column 'prompt'. Did you mean 'question'\?") as error:
        load_problems(sheet)
    assert str(error.value).endswith("data.columns.prompt=question data.columns.answer=COLUMN")
    columns = ColumnsConfig(prompt="quesion", answer="answr")
    expected = (
        r"there is no column 'quesion' \(data.columns.prompt\). Did you mean 'question'\? It has: question, answr"
    )
    for path in (sheet, write_rows({"question": "17+5", "answr": "22"})):
        with pytest.raises(DataError, match=expected):
            load_problems(path, columns=columns, on_bad_row="drop")
    with pytest.raises(DataError, match="Did you mean 'answr'"):
        load_problems(sheet, columns=ColumnsConfig(prompt="question"))


def test_a_mapping_that_is_no_longer_needed_is_named(write_rows):
    path = write_rows({"prompt": "17+5", "answer": "22"})
    with pytest.raises(DataError, match=r"no column 'question'.*Leave data.columns.prompt out: there is 'prompt'"):
        load_problems(path, columns=ColumnsConfig(prompt="question"))


def test_misspelt_traces_column_of_json_lines_is_not_silently_nothing(write_rows):
    path = write_rows({"prompt": "17+5", "answer": "22", "solutions": ["#22"]})
    with pytest.raises(DataError, match=r"'solution' \(data.columns.traces\). Did you mean 'solutions'"):
        load_problems(path, columns=ColumnsConfig(traces="solution"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "x", "answer": "1", "t": 3}, "a trace must be text, got a number"),
        ({"prompt": "x", "answer": "1", "t": [{"value": "#1"}]}, "a trace is an object without 'text' or 'content'"),
        ({"prompt": "x", "answer": "1", "t": ["#1", "#1"], "m": ["a"]}, "column 'm' has 1 values for 2 traces"),
        ({"prompt": "x", "answer": "1", "t": ["#1"], "m": 3}, "trace 1: 'model' must be a string"),
    ],
)
def test_bad_values_in_mapped_columns(write_rows, row, reason):
    path = write_rows({"prompt": "x", "answer": "1", "t": "#1", "m": "teacher"}, row)
    columns = ColumnsConfig(traces="t", model="m")
    with pytest.raises(DataError) as error:
        load_problems(path, columns=columns)
    assert f"{path}, row 2: {reason}" in str(error.value)
    assert load_problems(path, columns=columns, on_bad_row="drop").problems[0].traces == (Trace("#1", "teacher"),)


# What can be wrong with a file


BAD_CSV = {
    "too many fields": (b"prompt,answer\nx,1\na,b,c\n", r"row 3: has 3 fields, the header has 2"),
    "wrong encoding": ("prompt,answer\nx,1\nGrüße,2\n".encode("latin-1"), "row 3: column 'prompt': byte 0xfc is not"),
    "missing answer": (b"prompt,answer\nx,1\ny,\n", "row 3: there is no 'answer'"),
    "open quote": (b'prompt,answer\nx,1\n"y,2\n', "row 3: not valid CSV"),
    "column twice": (b"prompt,answer,prompt\nx,1,y\n", "column 'prompt' is there twice"),
    "header in another encoding": ("prompt,answer,größe\nx,1,2\n".encode("latin-1"), "row 1: is not UTF-8"),
    "UTF-16": ("prompt,answer\nx,1\n".encode("utf-16"), "is UTF-16 text; save it as UTF-8 .expected CSV"),
    "workbook": (b"PK\x03\x04", "Excel workbook.* save the sheet as CSV"),
    "empty": (b"", "the file is empty"),
    "header alone": (b"prompt,answer\n", "the file is empty"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_CSV.values(), ids=BAD_CSV.keys())
def test_bad_csv(tmp_path, content, reason):
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.csv.*{reason}"):
        load_problems(path)


def test_csv_trace_longer_than_the_parser_of_python_allows(tmp_path):
    path = write_csv(tmp_path / "x.csv", ["prompt", "answer", "trace"], ["x", "1", "word " * 50_000 + "#1"])
    assert len(load_problems(path).problems[0].traces[0].text) == 250_002


BAD_JSON = {
    "syntax": (b'[{"prompt": "x", "answer": "1"},\n {"prompt": }]', "line 2: not valid JSON: Expecting value"),
    "end missing": (b'[{"prompt": "x", "answer": "1"}', "line 1: not valid JSON: expected ',' or ']'"),
    "no list": (b'{"rows": 3}', "not valid JSON: an object without a single list"),
    "text": (b'"x"', "not a list"),
    "encoding": ('[{"prompt": "ü", "answer": "1"}]'.encode("latin-1"), "line 1: byte 0xfc is not UTF-8"),
    "empty": (b" \n", "the file is empty"),
    "empty list": (b"[]", "the file is empty"),
    "deep": (b"[" * 200_000, "nested too deeply"),
    "key twice": (b'[{"prompt": "x", "answer": "1", "answer": "2"}]', "row 1: key 'answer' is given twice"),
    "element": (b'[{"prompt": "x", "answer": "1"}, 3]', "row 2: expected an object .* got a number"),
}


@pytest.mark.parametrize(("content", "reason"), BAD_JSON.values(), ids=BAD_JSON.keys())
def test_bad_json(tmp_path, content, reason):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"x\.json.*{reason}"):
        load_problems(path)


def test_bad_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and nothing else")
    with pytest.raises(DataError, match=r"x\.parquet: is not a readable Parquet file"):
        load_problems(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="the file is empty"):
        load_problems(path)
    with pytest.raises(DataError, match=r"x\.parquet, row 2: there is no 'answer'"):
        load_problems(write_parquet(path, [{"prompt": "x", "answer": "1"}, {"prompt": "y", "answer": None}]))
    with pytest.raises(DataError, match="row 1: 'prompt' must be a string or a list of chat messages, got bytes"):
        load_problems(write_parquet(path, [{"prompt": b"x", "answer": "1"}]))
    with pytest.raises(DataError, match=r"trian\.parquet: there is no such file. Did you mean '.*x\.parquet'"):
        load_problems(tmp_path / "trian.parquet")


def test_a_hub_name_without_a_hub_says_what_to_check():
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"nobody/nothing: there is no such file, and .* from the hub .* data.split="):
        load_problems("nobody/nothing", split="test")


@given(content=st.binary(max_size=200), suffix=st.sampled_from(["csv", "tsv", "json", "parquet", "jsonl"]))
def test_any_bytes_load_or_are_refused(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("bytes", numbered=True) / f"x.{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(LuffyError):
        assert isinstance(load_problems(path, on_bad_row="drop"), LoadedProblems)


@given(content=st.text(alphabet='pa,"\n\r;[]{}: é1', max_size=40))
def test_any_text_in_a_sheet_loads_or_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("text", numbered=True) / "x.csv"
    path.write_text(f"prompt,answer\n{content}", newline="")
    with contextlib.suppress(LuffyError):
        assert isinstance(load_problems(path, on_bad_row="drop"), LoadedProblems)


# The original's files


def original_row(**changes):
    """A row in the schema of the original's training file."""
    return {
        "data_source": "",
        "prompt": MESSAGES,
        "target": [{"role": "assistant", "content": "<think>\n17+5=22\n</think>\n\\boxed{22}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "22"},
        "extra_info": {"split": "default", "index": 0},
    } | changes


def test_training_file_of_the_original(tmp_path):
    rows = [original_row(), original_row(target=None, data_source="math")]
    loaded = load_problems(write_parquet(tmp_path / "openr1.parquet", rows))
    assert loaded.problems == [
        Problem("row-1", tuple(MESSAGES), "22", "", (Trace("<think>\n17+5=22\n</think>\n\\boxed{22}"),)),
        Problem("row-2", tuple(MESSAGES), "22", "math"),
    ]


def test_probabilities_of_the_original_become_log_probs(tmp_path):
    rows = [original_row(target_ds_qwen_7b_probs=[1.0, 0.5, 0.0])]
    logprobs = load_problems(write_parquet(tmp_path / "x.parquet", rows)).problems[0].traces[0].logprobs
    assert logprobs == pytest.approx([0.0, math.log(0.5 + 1e-6), math.log(1e-6)])
    bad = write_parquet(tmp_path / "bad.parquet", [original_row(target_ds_qwen_7b_probs=[-0.5])])
    with pytest.raises(DataError, match=r"row 1: probability 1 of 'target_ds_qwen_7b_probs' is -0.5, expected 0 to 1"):
        load_problems(bad)


def test_ground_truth_in_a_list(tmp_path):
    one = original_row(reward_model={"style": "rule", "ground_truth": ["22"]})
    two = original_row(reward_model={"style": "rule", "ground_truth": ["22", "23"]})
    path = write_parquet(tmp_path / "x.parquet", [one, two])
    with pytest.raises(DataError, match=r"row 2: 'reward_model.ground_truth' is a list of 2 answers, expected one"):
        load_problems(path)
    assert load_problems(path, on_bad_row="drop").problems[0].answer == "22"


def test_a_mapping_changes_what_it_names_of_the_originals_columns(tmp_path):
    path = write_parquet(tmp_path / "x.parquet", [original_row(other=["#22"])])
    problem = load_problems(path, columns=ColumnsConfig(traces="other")).problems[0]
    assert (problem.answer, problem.traces) == ("22", (Trace("#22"),))


@pytest.mark.skipif(not BENCHMARKS.exists(), reason="the public benchmark file is not here")
def test_evaluation_file_of_the_original():
    loaded = load_problems(BENCHMARKS)
    assert len(loaded.problems) == 6023
    assert len({problem.prompt[-1]["content"] for problem in loaded.problems}) == 1590
    assert {problem.source for problem in loaded.problems} == {
        "aime", "aime25", "amc", "math", "minerva", "olympiad_bench",
    }  # fmt: skip
    assert all(problem.prompt[0]["role"] == "system" and not problem.traces for problem in loaded.problems)
