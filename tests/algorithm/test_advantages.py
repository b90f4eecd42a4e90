import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from luffy.algorithm import group_advantages

REWARDS = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=9)


def test_one_trace_among_failures():
    advantages = group_advantages([0, 0, 0, 1], [False, False, False, True])
    assert advantages.tolist() == [-0.25, -0.25, -0.25, 0.75]


def test_the_trace_loses_its_edge_as_the_policy_succeeds():
    off_policy = [False] * 7 + [True]
    edge = [float(group_advantages([1] * k + [0] * (7 - k) + [1], off_policy)[-1]) for k in range(8)]
    assert edge == [1 - (k + 1) / 8 for k in range(8)]


def test_division_by_the_sample_deviation():
    # mean 1/4, sample variance (3 * 1/16 + 9/16) / 3 = 1/4, deviation 1/2
    advantages = group_advantages([0, 0, 0, 1], [False] * 4, scale="std")
    assert advantages.tolist() == pytest.approx([-0.25 / 0.500001] * 3 + [0.75 / 0.500001])


def test_the_baseline_of_sampled_rollouts_alone():
    advantages = group_advantages([0, 1, 0, 1], [False, False, False, True], baseline="on_policy")
    assert advantages.tolist() == pytest.approx([-1 / 3, 2 / 3, -1 / 3, 2 / 3])
    scaled = group_advantages([0.0, 1, 0, 1], [False, False, False, True], baseline="on_policy", scale="std")
    assert scaled.tolist() == pytest.approx([a / (1 / math.sqrt(3) + 1e-6) for a in (-1 / 3, 2 / 3, -1 / 3, 2 / 3)])


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_equal_rewards_give_no_signal(reward):
    for scale in ("none", "std"):
        assert group_advantages([reward] * 4, [False] * 3 + [True], scale=scale).tolist() == [0] * 4


@pytest.mark.parametrize("off_policy", [[False], [True]])
def test_a_baseline_over_a_single_rollout_has_mean_0_and_deviation_1(off_policy):
    assert group_advantages([1.0], off_policy).tolist() == [1.0]
    assert group_advantages([1.0], off_policy, scale="std").tolist() == pytest.approx([1 / (1 + 1e-6)])


def test_no_sampled_rollout_in_the_baseline_is_finite():
    assert group_advantages([1.0, 0.0], [True, True], baseline="on_policy").tolist() == [1.0, 0.0]


@given(REWARDS.filter(lambda rewards: len(rewards) > 1), st.randoms())
def test_permuting_a_group_permutes_its_advantages(rewards, random):
    off_policy = [random.random() < 0.5 for _ in rewards]
    order = random.sample(range(len(rewards)), len(rewards))
    for baseline in ("group", "on_policy"):
        straight = group_advantages(rewards, off_policy, baseline=baseline, scale="std")
        turned = group_advantages(
            [rewards[i] for i in order], [off_policy[i] for i in order], baseline=baseline, scale="std"
        )
        torch.testing.assert_close(straight[order], turned)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9))
def test_equal_to_the_statistics_of_the_standard_library(rewards):
    values = torch.tensor(rewards, dtype=torch.float64)
    off_policy = [False] * len(rewards)
    mean = statistics.fmean(rewards)
    plain = group_advantages(values, off_policy)
    assert plain.tolist() == pytest.approx([r - mean for r in rewards], abs=1e-12)
    assert float(plain.sum()) == pytest.approx(0, abs=1e-9)
    deviation = float(values.std())
    if deviation > 1e-3:
        scaled = group_advantages(values, off_policy, scale="std").tolist()
        assert scaled == pytest.approx([(r - mean) / (statistics.stdev(rewards) + 1e-6) for r in rewards], rel=1e-6)


def test_wrong_shapes_and_names_are_refused():
    with pytest.raises(ValueError, match=r"\[2\] and \[3\]"):
        group_advantages([0, 1], [False] * 3)
    with pytest.raises(ValueError, match="baseline"):
        group_advantages([0, 1], [False] * 2, baseline="sampled")
