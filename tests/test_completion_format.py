"""The layout of a completion: what a prompt opens, what a trace repeats, what a verifier may grade."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luffy.formats import CompletionFormat

PLAIN = CompletionFormat()
OPENED = PLAIN.seen_in("User: 2+2\nAssistant: <think>\n")


@pytest.mark.parametrize(
    ("prompt", "end"),
    [
        ("Assistant: <think>\n", "<think>\n"),
        ("Assistant: <think>", "<think>"),
        ("Assistant: <think>\n\n  ", "<think>\n\n  "),
        ("Think in <think> and </think>. Assistant:", ""),
        ("<think> that was</think>\nAssistant:", ""),
        ("", ""),
    ],
)
def test_whether_a_prompt_opens_the_thought_is_read_off_its_end(prompt, end):
    seen = PLAIN.seen_in(prompt)
    assert seen.prompt_end == end
    assert seen.needs_closing == bool(end)


@pytest.mark.parametrize(
    ("prompt", "trace", "written"),
    [
        ("<think>\n", "<think>\nSo 4.</think>4", "So 4.</think>4"),
        ("<think>\n", "<think>So 4.</think>4", "So 4.</think>4"),
        ("<think>", "<think>\nSo 4.</think>4", "\nSo 4.</think>4"),  # the prompt did not write the newline
        ("<think>\n", "\n <think>\nSo 4.</think>4", "So 4.</think>4"),
        ("<think>\n", "So 4.</think>4", "So 4.</think>4"),
        ("<think>\n", "So <think>\n4", "So <think>\n4"),
        ("Assistant:", "<think>\nSo 4.</think>4", "<think>\nSo 4.</think>4"),
    ],
)
def test_opening_tag_of_a_trace_is_left_out_where_the_prompt_has_written_it(prompt, trace, written):
    assert PLAIN.seen_in(prompt).written_after_prompt(trace) == written


@given(st.text(alphabet="<think>/ \n4"), st.sampled_from(["<think>\n", "<think>", "A: "]))
def test_prompt_and_trace_together_open_the_thought_once_at_most(text, prompt):
    layout = PLAIN.seen_in(prompt)
    written = layout.written_after_prompt("<think>" + text)
    assert written.endswith(text.removeprefix("\n"))
    if layout.prompt_end:
        assert not written.startswith("<think>" + text) or text.startswith("<think>" + text)
    else:
        assert written == "<think>" + text


@pytest.mark.parametrize(
    ("layout", "text", "flaw"),
    [
        (PLAIN, "4", None),
        (OPENED, "So 4.</think>4", None),
        (OPENED, "So 4.", "has no '</think>', which ends the thought that the prompt has opened"),
        (CompletionFormat(gated=True), "So 4.", "has no '</think>', which reward.format=closed_thought demands"),
        (CompletionFormat(answer_marker="\\boxed"), "#### 4", "has no \\boxed around its final answer"),
        (CompletionFormat(answer_marker="\\boxed"), "\\boxed{4}</think>4", "has no \\boxed around its final answer"),
        (CompletionFormat(answer_marker="\\boxed"), "4</think>\\boxed{4}", None),
        (CompletionFormat(closing="[/T]", gated=True), "4</think>4", "has no '[/T]'"),
    ],
)
def test_what_a_trace_lacks_is_named(layout, text, flaw):
    found = layout.flaw(text)
    assert found == flaw if flaw is None else found.startswith(flaw)


@pytest.mark.parametrize(
    ("text", "part"),
    [("a</think>b", "b"), ("a", None), ("a</think>", ""), ("a</think>b</think>c", "b"), ("", None)],
)
def test_answer_stands_between_the_first_end_marker_and_a_possible_second(text, part):
    assert CompletionFormat(gated=True).answer_part(text) == part
