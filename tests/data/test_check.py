import json
import tracemalloc

import pytest

from luffy.config import ColumnsConfig
from luffy.data import check_file, left_out_path, load_problems, write_fixed
from luffy.errors import ConfigError, DataError
from luffy.types import Problem

GOOD = {"prompt": "Q17+5:", "answer": "22", "traces": ["17+5=22#22"]}


def test_good_file_is_ok(write_rows, plain_tokenizer):
    path = write_rows(GOOD | {"source": "sums"}, GOOD | {"prompt": "Q16+6:", "traces": []})
    report = check_file(path, kind="exact", tokenizer=plain_tokenizer, max_prompt_tokens=6, max_completion_tokens=20)
    assert report.ok
    assert (report.problems, report.traces, report.sources) == (2, 1, {"sums": 1, "": 1})
    assert report.prompt_lengths.longest == 6
    assert report.trace_lengths.longest == 11
    assert report.lines() == [
        f"{path}: 2 problems, 1 traces, 1 of the problems without a trace",
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


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_a_limit_would_cut_is_shown(write_rows, plain_tokenizer):
    rows = [GOOD, GOOD | {"prompt": "Q1+1+1:", "answer": "03", "traces": ["1+1+1=03#03", "#03"]}]
    report = check_file(
        write_rows(*rows), kind="exact", tokenizer=plain_tokenizer, max_prompt_tokens=6, max_completion_tokens=7
    )
    assert [(cut.row, cut.trace, cut.tokens, cut.lost) for cut in report.prompt_lengths.cuts] == [(2, None, 7, ":")]
    lost = [(cut.row, cut.trace, cut.tokens, cut.lost.replace(" ", "")[:3]) for cut in report.trace_lengths.cuts]
    assert lost == [(1, 1, 11, "#22"), (2, 1, 12, "3#0")]
    assert any("row 2: trace 1 has 12 tokens, would lose '3" in line for line in report.lines())


def test_histogram_counts_every_text(write_rows, plain_tokenizer):
    rows = [{"prompt": "Q" * length, "answer": "1"} for length in (1, 2, 2, 2, 30, 47)]
    report = check_file(write_rows(*rows), kind="exact", tokenizer=plain_tokenizer)
    assert report.prompt_lengths.histogram == (
        (0, 4), (5, 0), (10, 0), (15, 0), (20, 0), (25, 0), (30, 1), (35, 0), (40, 0), (45, 1),
    )  # fmt: skip
    lines = report.lines()
    assert "    0-4 " + "█" * 40 + " 4" in lines
    assert "  30-34 " + "█" * 10 + " 1" in lines
    assert "  25-29 0" in lines


@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("number", "about ten", "the reference answer 'about ten' is not a number"),
        ("math", "", None),
        ("math", "}{", "math-verify cannot read the reference answer"),
        ("exact", "about ten", None),
    ],
)
def test_answers_that_no_completion_can_match(write_rows, kind, answer, reason):
    path = write_rows(GOOD | {"traces": []}, {"prompt": "x", "answer": answer or "[1, 2)"})
    report = check_file(path, kind=kind, workers=1)
    assert [(item.row, item.answer) for item in report.bad_answers] == ([(2, answer)] if reason else [])
    if reason:
        assert reason in report.bad_answers[0].reason
        assert not report.ok


def test_traces_that_never_close_their_thought(write_rows):
    path = write_rows(
        GOOD | {"traces": ["<think>17+5</think>#22", "<think>17+5#22"]}, GOOD | {"prompt": "x", "traces": ["#22"]}
    )
    report = check_file(path, kind="exact", closing="</think>")
    assert [(item.row, item.trace) for item in report.unclosed_traces] == [(1, 2), (2, 1)]
    assert not report.ok
    assert "  row 1: trace 2 ends in '<think>17+5#22'" in report.lines()
    assert check_file(path, kind="exact").ok


def test_a_prompt_that_the_template_refuses_is_named_with_its_row(write_rows, chat_tokenizer):
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    path = write_rows(GOOD, {"prompt": messages, "answer": "1"}, GOOD | {"prompt": "x"})
    report = check_file(path, kind="exact", tokenizer=chat_tokenizer)
    assert [item.row for item in report.bad_prompts] == [2]
    assert "no system messages" in report.bad_prompts[0].reason
    assert sum(count for _, count in report.prompt_lengths.histogram) == 2


def test_overlap_with_a_benchmark(write_rows):
    words = [f"word{number}" for number in range(1, 15)]
    system = {"role": "system", "content": " ".join(["please"] * 20)}
    path = write_rows(
        GOOD | {"prompt": "And so: " + " ".join(words[1:]) + "?"},  # 13 words in a row
        GOOD | {"prompt": " ".join(words[2:])},  # only 12
        GOOD | {"prompt": [system, {"role": "user", "content": "What is $17 + 5$?"}]},  # all of a short one
        GOOD | {"prompt": [system, {"role": "user", "content": "What is 17 + 5 + 1?"}]},
    )
    long = ", ".join(words[:7]).upper() + "; " + " - ".join(words[7:])
    benchmark = [
        Problem("long", ({**system}, {"role": "user", "content": long}), "1"),
        Problem("short", "what is 17 + 5", "22"),
    ]
    report = check_file(path, kind="exact", benchmarks={"aime": benchmark})
    assert [(item.row, item.benchmark, item.problem) for item in report.overlaps] == [
        (1, "aime", "long"),
        (3, "aime", "short"),
    ]
    assert not report.ok
    assert "  row 3: aime, short: 'what is 17 5'" in report.lines()


def test_instructions_around_all_problems_of_a_benchmark_are_no_overlap(write_rows):
    around = "think step by step and put the final answer within a box at the very end of it"
    benchmark = [Problem(str(n), f"{n} + {n}? {around}", "1") for n in range(11)] * 4
    path = write_rows(GOOD | {"prompt": f"Something else. {around}"}, GOOD | {"prompt": f"7 + 7? {around}"})
    report = check_file(path, kind="exact", benchmarks={"sums": benchmark})
    assert [(item.row, item.problem) for item in report.overlaps] == [(2, "7")]


def test_fix_writes_the_good_part_and_the_rest_with_reasons(write_rows, tmp_path, plain_tokenizer):
    conflicting = {"prompt": "Q9+9:", "answer": "18"}
    path = write_rows(
        GOOD | {"level": 3},
        "broken {",
        GOOD,
        conflicting,
        conflicting | {"answer": "19"},
        {"prompt": "Q1+2:", "answer": "03", "traces": ["#03", "#04", {"text": "1+2=03#03", "model": "t"}]},
        {"prompt": "Q1+2+3+4:", "answer": "10"},
        {"prompt": "Q2+2:", "answer": "04", "traces": ["2+2=04#04"], "id": "x"},
    )
    report = check_file(path, kind="exact", tokenizer=plain_tokenizer, max_prompt_tokens=8, max_completion_tokens=11)
    out = tmp_path / "clean.jsonl"
    counts = write_fixed(report, out)
    assert counts == {"problems": 3, "traces": 4, "rows_left_out": 5, "traces_left_out": 1}
    clean = read(out)
    assert clean == [
        {"id": "row-1", **GOOD, "level": 3},
        {"id": "row-6", "prompt": "Q1+2:", "answer": "03", "traces": ["#03", {"text": "1+2=03#03", "model": "t"}]},
        {"id": "x", "prompt": "Q2+2:", "answer": "04", "traces": ["2+2=04#04"]},
    ]
    left_out = {(item["row"], item["trace"]): item for item in read(left_out_path(out))}
    assert sorted(left_out, key=str) == [(2, None), (3, None), (4, None), (5, None), (6, 2), (7, None)]
    assert left_out[2, None]["content"] == "broken {"
    assert left_out[3, None]["reason"] == "the same prompt and answer as row 1"
    assert left_out[4, None]["reason"] == "the same prompt has different answers (rows 4, 5)"
    assert left_out[6, 2] == {
        "row": 6, "trace": 2, "reason": "does not verify: got '04', expected '03'", "content": "#04",
    }  # fmt: skip
    assert "9 tokens, the limit is 8" in left_out[7, None]["reason"]
    again = check_file(out, kind="exact", tokenizer=plain_tokenizer, max_prompt_tokens=8, max_completion_tokens=11)
    assert again.ok
    assert not again.repeated_prompts


def test_fix_of_a_mapped_sheet_is_jsonl_with_our_keys(tmp_path):
    path = tmp_path / "sheet.csv"
    path.write_text("question,gold,note\n17+5,22,x\n17+5,23,y\n1+1,2,z\n")
    columns = ColumnsConfig(prompt="question", answer="gold")
    report = check_file(path, kind="exact", columns=columns)
    write_fixed(report, tmp_path / "clean.jsonl", columns=columns)
    assert read(tmp_path / "clean.jsonl") == [{"id": "row-4", "prompt": "1+1", "answer": "2"}]
    assert load_problems(tmp_path / "clean.jsonl").problems == [Problem("row-4", "1+1", "2")]


def test_fix_refuses_what_would_lose_data(write_rows, tmp_path):
    path = write_rows(GOOD)
    report = check_file(path, kind="exact")
    with pytest.raises(DataError, match="is the file that is checked"):
        write_fixed(report, path)
    path.write_text(json.dumps(GOOD | {"answer": "23"}))
    with pytest.raises(DataError, match="changed while it was checked"):
        write_fixed(report, tmp_path / "clean.jsonl")
    bad = write_rows(GOOD | {"answer": "x\u0000"}, GOOD, name="bad.jsonl")
    with pytest.raises(DataError, match="no problem would be left"):
        write_fixed(check_file(bad, kind="exact"), tmp_path / "clean.jsonl")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.jsonl", "train.jsonl"]


def test_memory_does_not_grow_with_the_file(tmp_path):
    def peak(rows):
        path = tmp_path / "long.jsonl"
        with path.open("w") as file:
            for number in range(rows):
                trace = f"{number} " * 2000 + "#22"
                file.write(json.dumps({"prompt": f"{number}?", "answer": "22", "traces": [trace]}) + "\n")
        tracemalloc.start()
        check_file(path, kind="exact")
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest, path.stat().st_size

    small, _ = peak(512)
    large, size = peak(2560)
    assert large - small < size / 5


def test_progress_tells_rows_and_share(write_rows):
    seen = []
    path = write_rows(*[GOOD | {"prompt": str(n)} for n in range(600)])
    check_file(path, kind="exact", on_progress=lambda rows, share: seen.append((rows, share)))
    assert [rows for rows, _ in seen] == [256, 512, 600]
    assert [share for _, share in seen] == sorted(share for _, share in seen)
    assert seen[-1][1] == 1.0
