import pytest

from luffy.data import EncodedProblem, EncodedTrace, LoadedProblems, load_problems, prepare_problems
from luffy.data.prepare import Cause
from luffy.errors import DataError
from luffy.reward import Verdict, VerifierPool
from luffy.types import Problem, Trace

SETTINGS = {
    "template": "auto",
    "max_prompt_tokens": 20,
    "max_completion_tokens": 30,
    "on_long_prompt": "refuse",
    "on_bad_trace": "refuse",
    "on_long_trace": "refuse",
}


def prepare(problems, tokenizer, **changes):
    with VerifierPool("exact", workers=0, deadline=1) as pool:
        return prepare_problems(problems, tokenizer, **{"verify": pool.verify_all} | SETTINGS | changes)


def sum_with(*traces, prompt="Q17+5:"):
    return [Problem("a", prompt, "22", "", tuple(traces))]


def test_everything_is_tokenised_and_verified(plain_tokenizer):
    problems = [
        *sum_with(Trace("17+5=22#22"), Trace("#22", logprobs=(-1.0, -2.0, -3.0))),
        Problem("b", "Q1+1:", "02"),
    ]
    prepared = prepare(problems, plain_tokenizer)
    ids = plain_tokenizer("Q17+5:")["input_ids"]
    first = (*plain_tokenizer("17+5=22#22")["input_ids"], plain_tokenizer.eos_token_id)
    second = (*plain_tokenizer("#22")["input_ids"], plain_tokenizer.eos_token_id)
    assert prepared.problems[0] == EncodedProblem(
        problems[0],
        tuple(ids),
        (
            EncodedTrace(first, None, "17+5=22#22", 1.0),
            EncodedTrace(second, (-1.0, -2.0, -3.0, 0.0), "#22", 1.0),  # end-of-sequence without log-prob
        ),
    )
    assert prepared.problems[1].traces == ()
    assert prepared.report.lines() == ["2 problems with 2 traces"]


def test_log_probs_with_end_of_sequence_are_taken_as_they_are(plain_tokenizer):
    prepared = prepare(sum_with(Trace("#22", logprobs=(-1.0, -2.0, -3.0, -4.0))), plain_tokenizer)
    assert prepared.problems[0].traces[0].logprobs == (-1.0, -2.0, -3.0, -4.0)


BAD_TRACES = {
    "wrong": (Trace("17+5=12#12"), Cause.WRONG_TRACE, "trace 2 does not verify: got '12', expected '22'"),
    "short logprobs": (
        Trace("#22", logprobs=(-1.0,)),
        Cause.BROKEN_TRACE,
        "trace 2 has 1 logprobs for 3 tokens and end-of-sequence",
    ),
    "end inside": (Trace("<eos>#22"), Cause.BROKEN_TRACE, "trace 2 has an end-of-sequence token before its end"),
}


@pytest.mark.parametrize(("trace", "cause", "text"), BAD_TRACES.values(), ids=BAD_TRACES.keys())
def test_bad_trace_is_refused_dropped_or_kept(plain_tokenizer, trace, cause, text):
    problems = sum_with(Trace("#22"), trace)
    with pytest.raises(DataError) as error:
        prepare(problems, plain_tokenizer)
    assert f"problem 'a': {text}" in str(error.value)
    assert "data.on_bad_trace=keep" in str(error.value)

    dropped = prepare(problems, plain_tokenizer, on_bad_trace="drop")
    assert [item.text for item in dropped.problems[0].traces] == ["#22"]
    assert dropped.report.count(cause) == 1
    assert f"left out, {cause}: 1" in dropped.report.lines()

    kept = prepare(problems, plain_tokenizer, on_bad_trace="keep")
    assert [item.text for item in kept.problems[0].traces] == ["#22", trace.text]
    assert kept.problems[0].traces[1].reward == (0.0 if cause is Cause.WRONG_TRACE else 1.0)
    assert kept.problems[0].traces[1].logprobs is None
    assert [(finding.cause, finding.kept) for finding in kept.report.findings] == [(cause, True)]


def test_trace_whose_verification_fails_says_why(plain_tokenizer):
    def verify(pairs):
        return [Verdict(False, None, "timeout") for _ in pairs]

    with pytest.raises(DataError, match="problem 'a': trace 1 could not be verified \\(timeout\\)"):
        prepare(sum_with(Trace("#22")), plain_tokenizer, verify=verify)


def test_limits_include_end_of_sequence(plain_tokenizer):
    assert (
        prepare(sum_with(Trace("#22")), plain_tokenizer, max_prompt_tokens=6, max_completion_tokens=4).report.findings
        == ()
    )


def test_long_prompt_is_refused_or_dropped(plain_tokenizer):
    problems = [*sum_with(Trace("#22")), Problem("b", "Q" + "1" * 30 + ":", "1", "", (Trace("#2"),))]
    with pytest.raises(DataError, match=r"problem 'b': the prompt has 32 tokens, more than data.max_prompt_tokens=20"):
        prepare(problems, plain_tokenizer)
    prepared = prepare(problems, plain_tokenizer, on_long_prompt="drop")
    assert [item.problem.id for item in prepared.problems] == ["a"]
    assert prepared.report.count(Cause.LONG_PROMPT) == 1


def test_long_trace_is_refused_or_dropped_and_never_verified(plain_tokenizer):
    verified = []

    def verify(pairs):
        verified.extend(pairs)
        return [Verdict(True, None) for _ in pairs]

    problems = sum_with(Trace("1" * 30 + "#22"), Trace("#22"))
    with pytest.raises(DataError, match=r"problem 'a': trace 1 has 34 tokens, more than rollout.max_tokens=30"):
        prepare(problems, plain_tokenizer)
    prepared = prepare(problems, plain_tokenizer, on_long_trace="drop", verify=verify)
    assert verified == [("#22", "22")]
    assert [item.text for item in prepared.problems[0].traces] == ["#22"]
    assert prepared.report.count(Cause.LONG_TRACE) == 1


def test_nothing_left_is_refused(plain_tokenizer):
    with pytest.raises(DataError, match=r"every problem was left out. The first one: problem 'a': the prompt has"):
        prepare(sum_with(), plain_tokenizer, max_prompt_tokens=1, on_long_prompt="drop")


def test_messages_name_file_and_row_and_dropped_rows_are_reported(write_rows, plain_tokenizer):
    path = write_rows("x", {"prompt": "Q17+5:", "answer": "22", "traces": ["#12"]})
    loaded = load_problems(path, on_bad_row="drop")
    report = prepare(loaded, plain_tokenizer, on_bad_trace="drop").report
    messages = [finding.message for finding in report.findings]
    assert messages[0].startswith(f"{path}, row 1: not valid JSON")
    assert messages[1] == f"{path}, row 2: trace 1 does not verify: got '12', expected '22'"
    assert report.to_json()["findings"][1] == {"cause": str(Cause.WRONG_TRACE), "kept": False, "message": messages[1]}


def test_report_shows_the_first_findings_and_counts_the_rest(plain_tokenizer):
    problems = [Problem(str(number), "Q1+1:", "02", "", (Trace("#03"),)) for number in range(5)]
    lines = prepare(problems, plain_tokenizer, on_bad_trace="drop").report.lines(shown=2)
    assert lines[:2] == ["5 problems with 0 traces", f"left out, {Cause.WRONG_TRACE}: 5"]
    assert lines[2:] == [
        *(f"  problem '{n}': trace 1 does not verify: got '03', expected '02'" for n in "01"),
        "  and 3 more",
    ]


@pytest.mark.parametrize(
    ("traces", "limit", "said"),
    [
        ([], 30, "Add `traces` to the rows, or train with method=on_policy."),
        (["17+5=22#22"], 5, "Left out, long trace: 1. rollout.max_tokens=11 would keep it."),
        (["1+1=02#22", "2+2=04#22", "17+5=22#22", "17+5=022#22"], 5,
         "Left out, long trace: 4. rollout.max_tokens=11 would keep half of the long ones, 12 all of them."),
        (["#12", "17+5=22#22"], 5, "Left out, long trace: 1, trace that does not verify: 1. rollout.max_tokens=11"),
        (["#12"], 5, "Left out, trace that does not verify: 1."),
    ],
)  # fmt: skip
def test_without_a_trace_left_the_report_says_why_and_what_would_keep_them(plain_tokenizer, traces, limit, said):
    problems = sum_with(*map(Trace, traces))
    changes = {"max_completion_tokens": limit, "on_long_trace": "drop", "on_bad_trace": "drop"}
    prepared = prepare(problems, plain_tokenizer, **changes)
    assert prepared.problems[0].traces == ()
    assert prepared.report.why_no_trace().startswith(said)
    number = said.partition("max_tokens=")[2].partition(" ")[0]
    if number:  # what it names is true
        kept = prepare(problems, plain_tokenizer, **changes | {"max_completion_tokens": int(number)})
        assert len(kept.problems[0].traces) >= len([trace for trace in traces if trace != "#12"]) / 2


def test_long_answers_are_shortened_in_messages(plain_tokenizer):
    with pytest.raises(DataError) as error:
        prepare([Problem("a", "Q1:", "1" * 5000, "", (Trace("#2"),))], plain_tokenizer)
    assert len(str(error.value)) < 300


def test_equal_token_ids_are_one_object(byte_tokenizer):
    loaded = LoadedProblems.of([Problem(str(number), "ÿ", "1", "", (Trace("ÿ#1"),)) for number in range(2)])
    first, second = prepare(loaded, byte_tokenizer).problems
    assert first.prompt_ids[1] is second.traces[0].token_ids[0]
