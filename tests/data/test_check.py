import json

import pytest

from luffy.data import check_file
from luffy.errors import ConfigError, DataError

GOOD = {"prompt": "Q17+5:", "answer": "22", "traces": ["17+5=22#22"]}


def test_good_file_is_ok(write_rows, plain_tokenizer):
    path = write_rows(GOOD | {"source": "sums"}, GOOD | {"prompt": "Q16+6:", "traces": []})
    report = check_file(path, kind="exact", tokenizer=plain_tokenizer, max_prompt_tokens=6, max_completion_tokens=20)
    assert report.ok
    assert (report.problems, report.traces, report.sources) == (2, 1, {"sums": 1, "": 1})
    assert report.prompt_lengths.longest == 6
    assert report.trace_lengths.longest == 11
    assert report.lines() == [
        f"{path}: 2 problems, 1 traces",
        "by source: 'sums' 1, '' 1",
        "prompts, tokens: 50 % up to 6, 90 % up to 6, 99 % up to 6, longest 6; none over the limit of 6",
        "traces, tokens: 50 % up to 11, 90 % up to 11, 99 % up to 11, longest 11; none over the limit of 20",
        "ok",
    ]


def test_everything_wrong_is_named_in_one_go(write_rows, plain_tokenizer):
    path = write_rows(
        GOOD | {"id": "a"},
        "broken",
        GOOD | {"id": "a"},
        GOOD,
        GOOD | {"answer": "21"},
        {"prompt": "Q1+1:", "answer": "02", "traces": [{"text": "#02", "logprobs": [-1.0]}]},
    )
    report = check_file(path, kind="exact", tokenizer=plain_tokenizer, max_prompt_tokens=5, max_completion_tokens=4)
    assert not report.ok
    assert [row.row for row in report.bad_rows] == [2, 3]
    assert [row.row for row in report.duplicate_ids] == [3]
    assert [(item.row, item.trace, item.extracted, item.expected) for item in report.wrong_traces] == [
        (5, 1, "22", "21"),
        (6, 1, None, "02"),
    ]
    assert [(item.rows, item.answers) for item in report.contradictions] == [((1, 4, 5), ("22", "21"))]
    assert report.prompt_lengths.over_limit == (1, 4, 5)
    assert report.trace_lengths.over_limit == (1, 4, 5)
    lines = "\n".join(report.lines())
    for expected in (
        "row 2: not valid JSON",
        "row 3: id 'a' is already used in row 1",
        "row 5: trace 1 does not verify: got '22', expected '21'",
        "row 6: trace 1 has 1 logprobs for 3 tokens",
        "rows 1, 4, 5: answers '22', '21'",
        "3 over the limit of 5 (rows 1, 4, 5)",
        "not ok",
    ):
        assert expected in lines


def test_report_is_json(write_rows, plain_tokenizer):
    report = check_file(write_rows(GOOD, GOOD, "x"), kind="exact", tokenizer=plain_tokenizer)
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["ok"] is False
    assert plain["bad_rows"][0]["row"] == 3
    assert plain["repeated_prompts"] == [{"rows": [1, 2], "answers": ["22"]}]
    assert plain["conflicting_answers"] == []
    assert plain["prompt_lengths"]["percentiles"] == {"50": 6, "90": 6, "99": 6}


def test_file_of_bad_rows_only_is_reported_and_not_raised(write_rows, plain_tokenizer):
    report = check_file(write_rows("x", "y"), kind="exact", tokenizer=plain_tokenizer)
    assert not report.ok
    assert len(report.bad_rows) == 2
    assert report.prompt_lengths is None


def test_hanging_verifier_does_not_hang_the_check(write_rows):
    hang = "while True: pass"
    report = check_file(write_rows(GOOD), kind=lambda text, answer: exec(hang), workers=1, deadline=0.3)
    assert report.wrong_traces[0].failure == "timeout"


def test_unusable_file_or_kind_is_an_error(write_rows):
    with pytest.raises(DataError, match="empty"):
        check_file(write_rows(), kind="exact")
    with pytest.raises(ConfigError, match="Did you mean 'exact'"):
        check_file(write_rows(GOOD), kind="exat")


def test_long_lists_are_cut_with_a_count(write_rows):
    report = check_file(write_rows(*["x"] * 25), kind="exact")
    assert "  and 15 more" in report.lines()
