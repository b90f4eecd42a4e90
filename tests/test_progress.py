"""What a user sees while it lasts: a believable time left, and in a pipe few plain lines."""

import io
import re

import pytest
from rich.console import Console

from luffy.progress import LINES_IN_A_PIPE, TimeLeft, TrainingProgress, shown_time

METRICS = {"reward/on_policy": 0.25, "update/loss": 0.125, "policy/entropy": 0.5, "time/update": 3.0}
EVERYTHING = METRICS | {"accuracy": 0.75, "guidance/trace_advantage": 0.875, "completion/length": 61.5}
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")  # all but the end of a line


def in_a_pipe(steps, first=1):
    stream = io.StringIO()
    with TrainingProgress(Console(file=stream, width=80), "luffy") as progress:
        for step in range(first, steps + 1):
            progress.on_step(step, steps, METRICS)
    return stream.getvalue()


@pytest.mark.parametrize(("steps", "lines"), [(1, 1), (5, 5), (200, 20), (5000, 20)])
def test_a_pipe_gets_a_line_a_step_at_most_and_few_in_all(steps, lines):
    text = in_a_pipe(steps)
    assert CONTROL.search(text) is None
    assert len(text.splitlines()) == lines <= LINES_IN_A_PIPE
    assert text.splitlines()[-1].startswith(f"step {steps}/{steps}  reward 0.250  entropy 0.500  loss 0.125  ")


def test_a_terminal_gets_one_bar():
    stream = io.StringIO()
    console = Console(file=stream, width=120, force_terminal=True, legacy_windows=False)
    with TrainingProgress(console, "luffy") as progress:
        for step in range(1, 101):
            progress.on_step(step, 100, METRICS)
    *_, bar, numbers = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).strip().splitlines()
    assert "100/100" in bar
    assert "reward 0.250" in numbers


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_a_narrow_terminal_shows_method_step_and_time_left_whole(width):
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=True, legacy_windows=False)
    with TrainingProgress(console, "on_policy_shaping") as progress:
        for step in range(1, 101):
            progress.on_step(step, 5000, EVERYTHING)
    *_, bar, numbers = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue()).strip().splitlines()
    assert re.fullmatch(r"on_policy_shaping +[━╸╺ ]+ +100/5000 +\d+:\d+ left", bar.strip())
    assert numbers.startswith("reward 0.250  accuracy 0.750  trace adv. 0.875")
    assert (width >= 100) == numbers.strip().endswith("loss 0.125")
    assert max(len(bar), len(numbers)) <= width


def test_the_time_left_is_that_of_the_steps_now_and_not_of_the_first():
    left = TimeLeft(window=10)
    assert left.after(1, 1000, now=60.0) is None  # the first one took a minute: it says nothing of the others
    assert left.after(2, 1000, now=62.0) == pytest.approx(2.0 * 998)
    for step in range(3, 30):
        left.after(step, 1000, now=62.0 + 5.0 * (step - 2))  # they have become slower
    assert left.after(30, 1000, now=62.0 + 5.0 * 28) == pytest.approx(5.0 * 970)
    assert left.after(1000, 1000, now=5000.0) == 0


def test_a_run_that_goes_on_does_not_count_what_was_done_before():
    left = TimeLeft()
    assert left.after(501, 1000, now=0.0) is None
    assert left.after(502, 1000, now=3.0) == pytest.approx(3.0 * 498)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.4, "0:00"), (59.6, "1:00"), (245, "4:05"), (3723, "1:02:03"), (3599.7, "1:00:00")],
)
def test_times_as_one_says_them(seconds, text):
    assert shown_time(seconds) == text
