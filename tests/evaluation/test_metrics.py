import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luffy.evaluation.metrics import majority_shares, sizes, summarise
from luffy.evaluation.statistics import paired_p_value
from luffy.reward import verify


def verify_numbers(pairs):
    return [verify("number", text, answer) for text, answer in pairs]


def record(*samples, answer="7"):
    """samples: the extracted answers; None: none was found; a tuple: cut off."""
    made = []
    for one in samples:
        finished, extracted = (False, one[0]) if isinstance(one, tuple) else (True, one)
        right = finished and extracted is not None and verify("number", f"#### {extracted}", answer).correct
        made.append(
            {
                "text": str(extracted),
                "correct": right,
                "finished": finished,
                "tokens": 3,
                "extracted": extracted,
                "failure": None,
            }
        )
    return {"id": "p", "prompt": "?", "answer": answer, "samples": made}


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (["7", "7", "8"], 1.0),
        (["8", "8", "7"], 0.0),
        (["7", "8"], 0.5),  # a tie
        (["7", "8", "9"], 1 / 3),
        (["7", "7.0", "8", "8"], 0.5),  # equal to the verifier, two against two
        (["7", "7.0", "7.00", "8", "8"], 1.0),
        (["8", "8.0", "8.00", "7", "7"], 0.0),  # wrong answers are joined too
        (["7", None, None], 1.0),  # no answer is no vote
        (["7", ("8",), ("8",)], 1.0),  # nor is a completion that was cut off
        ([None, None], 0.0),
        (["  7", "7  ", "8"], 1.0),
    ],
)
def test_majority(samples, expected):
    assert majority_shares([record(*samples)], verify_numbers, "number") == [pytest.approx(expected)]


def test_majority_by_text_for_other_kinds():
    assert majority_shares([record("7", "7.0", "8", "8")], verify_numbers, "exact") == [0.0]


@given(st.lists(st.sampled_from(["7", "8", "9", None]), min_size=2, max_size=8), st.randoms())
def test_the_order_of_samples_changes_nothing(samples, order):
    shuffled = list(samples)
    order.shuffle(shuffled)
    results = [summarise("x", [record(*one)], verify_numbers, "number") for one in (samples, shuffled)]
    assert results[0].metrics() == results[1].metrics()


def test_what_is_reported():
    records = [record("7", "8", None, ("7",)), record("8", "8", "8", "8")]
    metrics = summarise("x", records, verify_numbers, "number").metrics()
    assert metrics["avg@4"]["value"] == pytest.approx(1 / 8)
    assert metrics["pass@1"]["value"] == pytest.approx(1 / 8)
    assert metrics["pass@2"]["value"] == pytest.approx(1 / 4)  # one of four right: half of the pairs hold it
    assert metrics["pass@4"]["value"] == pytest.approx(1 / 2)
    assert metrics["maj@4"]["value"] == pytest.approx(1 / 4)  # 7 and 8 tie in the first problem
    assert metrics["completion/truncated"] == pytest.approx(1 / 8)
    assert metrics["completion/extracted"] == pytest.approx(6 / 8)
    assert "pass@3" not in metrics


def test_one_sample_has_neither_pass_nor_majority():
    metrics = summarise("x", [record("7")], verify_numbers, "number").metrics()
    assert not any(name.startswith(("pass@", "maj@")) for name in metrics)


@pytest.mark.parametrize(("k", "expected"), [(1, []), (2, [1, 2]), (3, [1, 2, 3]), (12, [1, 2, 4, 8, 12])])
def test_sizes_of_pass(k, expected):
    assert sizes(k) == expected


def test_sign_flips_by_hand():
    assert paired_p_value([1, 1, 1], [0, 0, 0]) == pytest.approx(2 / 8)  # all three alike: 2 of 8 patterns
    assert paired_p_value([1, 0, 1], [0, 0, 0]) == pytest.approx(2 / 4)  # equal problems say nothing
    assert paired_p_value([1, 0], [1, 0]) == 1.0
    many = paired_p_value([1] * 40 + [0] * 10, [0] * 40 + [1] * 10)
    exact = 2 * sum(math.comb(50, n) for n in range(11)) / 2**50
    assert 0 < many < 10 * max(exact, 1 / 20_000)
    assert paired_p_value([1] * 15 + [0] * 15, [0] * 15 + [1] * 15) > 0.9
