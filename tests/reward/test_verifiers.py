import itertools
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import functions_under_test
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luffy.config import RewardConfig
from luffy.errors import ConfigError
from luffy.formats import CompletionFormat
from luffy.reward import VERIFIERS, Verdict, verify
from luffy.reward.verifiers import SHOWN_CHARACTERS, verify_math


def test_exact_compares_text():
    assert verify("exact", "17+5=22#22", "22") == Verdict(True, "22")
    assert verify("exact", "17+5=22#22", " 22 ").correct
    assert verify("exact", "so \\boxed{\\frac12}", "\\frac12").correct
    assert verify("exact", "  Paris\n", "Paris") == Verdict(True, "Paris")
    assert not verify("exact", "#022", "22").correct
    assert verify("exact", "17+5=22#", "22") == Verdict(False, "")


def test_number_compares_values():
    assert verify("number", "#### $1,000.00", "1000") == Verdict(True, "$1,000.00")
    assert verify("number", "about 1/2", "0.5").correct
    assert verify("number", "#### 12", "21") == Verdict(False, "12")
    assert verify("number", "no idea", "21") == Verdict(False, None)
    assert not verify("number", "#### 0.1", "0.10000000000000000001").correct


def test_number_refuses_a_reference_that_is_none():
    verdict = verify("number", "#### 12", "twelve")
    assert not verdict.correct
    assert "'twelve' is not a number" in verdict.failure


@given(st.fractions(), st.fractions())
def test_number_agrees_with_equality(left, right):
    assert verify("number", f"#### {left}", str(right)).correct == (left == right)


@pytest.mark.parametrize(
    ("completion", "answer", "correct"),
    [
        ("so \\boxed{\\frac{1}{2}}", "0.5", True),
        ("the area is $x(x+1)$", "x^2+x", True),
        ("\\boxed{(1,2)}", "(1, 2)", True),
        ("\\boxed{\\{2, 1\\}}", "\\{1, 2\\}", True),
        ("#### 72", "72", True),
        ("\\boxed{73}", "$72$", False),
        ("\\boxed{72}", "$72$", True),
        ("\\boxed{18}", "$18", True),
        ("", "72", False),
        ("no answer", "72", False),
    ],
)
def test_math_compares_as_mathematics(completion, answer, correct):
    verdict = verify("math", completion, answer)
    assert verdict.correct is correct
    assert verdict.failure is None


@pytest.mark.parametrize(
    ("given", "answer", "correct"),
    [
        ("2.88e-19", "1.325e-27", False),
        ("2.88 \\times 10^{-19}", "2.88e-19", True),
        ("10^{-8}", "10^{-9}", False),
        ("-3e-9", "3e-9", False),
        ("\\frac{1}{10000}", "0.0001", True),
        ("0", "10^{-9}", False),
        ("0.0", "0", True),
    ],
)
def test_math_tells_small_numbers_apart(given, answer, correct):
    assert verify_math(f"\\boxed{{{given}}}", answer).correct is correct


def test_math_works_outside_the_main_thread():
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.append(verify("math", "\\boxed{1/2}", "0.5")))
    thread.start()
    thread.join()
    assert verdicts == [Verdict(True, "\\frac{1}{2}")]


def test_own_function_by_name_and_as_it_is():
    assert verify("python:functions_under_test:equal", "a", "a") == Verdict(True, None)
    assert verify(functions_under_test.equal, "a", "b") == Verdict(False, None)
    for reward in (1, 1.0, np.bool_(True), np.float32(1)):
        assert verify(lambda text, answer, reward=reward: reward, "", "").correct


def test_own_function_is_found_in_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "my_rewards_here.py").write_text("def check(text, answer):\n    return text.startswith(answer)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert verify("python:my_rewards_here:check", "42 indeed", "42").correct


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("raise", "error: ValueError: no such answer"),
        ("sys.exit", "error: SystemExit: 2"),
        ("graded", "error: the reward function returned 0.3, expected True, False, 1 or 0"),
        ("nothing", "error: the reward function returned None, expected True, False, 1 or 0"),
    ],
)
def test_own_function_that_misbehaves_is_a_failure(text, failure):
    assert verify(functions_under_test.misbehaving, text, "1") == Verdict(False, None, failure)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("numbr", "unknown verifier 'numbr'. Did you mean 'number'?"),
        ("", "unknown verifier ''"),
        ("python:functions_under_test", "not of the form python:package.module:function"),
        ("python::f", "not of the form"),
        ("python:no_such_module_anywhere:f", "cannot import 'no_such_module_anywhere'"),
        ("python:functions_under_test:equl", "has no function 'equl'. Did you mean 'equal'?"),
        ("python:functions_under_test:not_a_function", "is not a function"),
    ],
)
def test_unknown_kind_is_named_with_the_nearest(kind, message):
    with pytest.raises(ConfigError) as caught:
        verify(kind, "1", "1")
    assert message in str(caught.value)


def test_extracted_answer_is_shortened_but_compared_whole():
    long = "a" * 1000
    verdict = verify("exact", f"#{long}", long)
    assert verdict.correct
    assert len(verdict.extracted) == SHOWN_CHARACTERS
    assert not verify("exact", f"#{long}b", long).correct


@given(st.sampled_from(["exact", "number"]), st.text(), st.text())
def test_any_text_gives_a_verdict(kind, completion, answer):
    assert isinstance(verify(kind, completion, answer), Verdict)


def test_reward_imports_neither_torch_nor_transformers():
    program = "import sys, luffy.reward; print([m for m in ('torch', 'transformers', 'sympy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [  # in the form of GSM8K
        ("She eats 3 + 4 = <<3+4=7>>7.\nSo 16 - 7 = <<16-7=9>>9 are left.\n#### 9", "9"),
        ("That is $80,000 + $50,000 = $<<80000+50000=130000>>130,000.\n#### 130,000", "130000"),
        ("The price rose by 150%, so by 1.5 * 2 = <<1.5*2=3>>3.\n#### -3.0", "-3"),
    ],
)
def test_worked_solutions_verify(solution, answer):
    assert verify("number", solution, answer).correct
    assert not verify("number", solution, answer + "1").correct


def test_solutions_of_gsm8k_verify():
    folder = os.environ.get("LUFFY_PUBLIC_DATA")
    if not folder:
        pytest.skip("LUFFY_PUBLIC_DATA names no folder of public sets (with gsm8k/test.jsonl)")
    with Path(folder, "gsm8k/test.jsonl").open(encoding="utf-8") as lines:
        for line in itertools.islice(lines, 300):
            solution = json.loads(line)["answer"]
            assert verify("number", solution, solution.rpartition("#### ")[2]).correct, solution


def test_table_names_the_kinds_of_the_configuration():
    assert set(VERIFIERS) == {"exact", "number", "math", "choice", "reasoning_gym"}
    description = RewardConfig.model_fields["kind"].description
    assert all(kind in description for kind in VERIFIERS)


# -- the gate on the format

GATE = CompletionFormat(gated=True)


@pytest.mark.parametrize(
    ("text", "extracted", "correct"),
    [
        ("4 or 5?</think>#### 5", "5", True),
        ("it is 5, #### 5", None, False),  # never closed
        ("#### 5</think>", None, False),  # the answer is in the thought
        ("#### 5</think>#### 6", "6", False),
        ("hm</think>#### 5</think>#### 6", "5", True),  # what follows a second end marker does not count
    ],
)
def test_gate_grades_what_follows_the_thought(text, extracted, correct):
    verdict = verify("number", text, "5", gate=GATE)
    assert (verdict.correct, verdict.extracted, verdict.failure) == (correct, extracted, None)


def test_without_a_gate_everything_is_graded():
    assert verify("number", "it is 5, #### 5", "5").correct
    assert verify("math", "\\boxed{5}</think> yes", "5").correct


@pytest.mark.parametrize("kind", ["exact", "number", "math", "choice", functions_under_test.equal])
def test_gate_is_before_every_kind(kind):
    answer = "B" if kind == "choice" else "5"
    assert verify(kind, f"hm</think>{answer}", answer, gate=GATE).correct
    assert verify(kind, answer, answer, gate=GATE) == Verdict(False, None)


def test_memory_error_is_a_cause_of_its_own():
    def greedy(text, answer):
        raise MemoryError

    assert verify(greedy, "", "") == Verdict(False, None, "memory")
