"""The steps before the update: what is drawn, who joins a group, what is verified, what it is worth."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_problems import FakeTokenizer, Known, encoded
from luffy import load_config
from luffy.algorithm import METHODS
from luffy.data import EncodedProblem, EncodedTrace
from luffy.errors import RunError
from luffy.reward import Verdict
from luffy.training.clock import Clock
from luffy.training.draw import draw, seed_of
from luffy.training.groups import assign_advantages, collect_groups, refuse_failing_verifier
from luffy.training.metrics import group_metrics
from luffy.types import Completion, Group, Problem, Rollout


class FakeEngine:
    """Completion j of problem i is `[i, j, 9]`; every third is cut off by the limit."""

    def __init__(self):
        self.calls = []

    def generate(self, prompt_ids, n, sampling):
        self.calls.append((len(prompt_ids), n, sampling))
        return [
            [Completion((prompt[0], copy, 8 if copy % 3 == 2 else 9), (-0.5,) * 3, copy % 3 != 2) for copy in range(n)]
            for prompt in prompt_ids
        ]


def collect(problems, method="luffy", step=1, engine=None, **overrides):
    graded = []

    def submit(pairs):
        graded.extend(pairs)
        return Known([Verdict(text == answer, text) for text, answer in pairs])

    around = around_collecting(method, step, **overrides)
    return collect_groups(problems, engine=engine or FakeEngine(), submit=submit, **around), graded


def around_collecting(method="luffy", step=1, **overrides):
    return {
        "tokenizer": FakeTokenizer(),
        "method": METHODS[method],
        "config": load_config(overrides={"rollout.group_size": 4} | overrides),
        "step": step,
        "clock": Clock(),
    }


@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 3))
def test_each_epoch_comes_once(items, count, seed):
    steps = 3 * items
    drawn = [one for step in range(steps) for one in draw(range(items), step, count, "problems", seed)]
    for epoch in range(len(drawn) // items):
        assert Counter(drawn[epoch * items : (epoch + 1) * items]) == Counter(range(items))


def test_what_is_drawn_depends_on_seed_and_step_alone():
    forwards = [draw(range(50), step, 7, "problems", 3) for step in range(20)]
    backwards = [draw(range(50), step, 7, "problems", 3) for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert draw(range(50), 0, 7, "problems", 4) != forwards[0]
    assert draw(range(50), 0, 7, "traces", 3) != forwards[0]
    assert forwards[0] != draw(range(50), 7, 7, "problems", 3)  # the second epoch has another order


def test_seeds_are_the_same_on_every_machine():
    assert seed_of("sample", 0, 1, 7) == 1087950740658245905
    assert 0 <= seed_of("x") < 2**63


def test_a_group_always_has_its_size():
    (without, with_one, with_three), _ = collect([encoded(1), encoded(2, 1), encoded(3, 3)])
    assert [[one.off_policy for one in group.rollouts] for group in (without, with_one, with_three)] == [
        [False] * 4,
        [False] * 3 + [True],
        [False] * 3 + [True],
    ]


def test_one_call_of_the_engine_for_each_number_of_rollouts():
    engine = FakeEngine()
    groups, _ = collect([encoded(1), encoded(2, 1), encoded(3), encoded(4, 2)], engine=engine)
    assert [(prompts, n) for prompts, n, _ in engine.calls] == [(2, 3), (2, 4)]
    assert len({sampling.seed for _, _, sampling in engine.calls}) == 2
    assert [group.rollouts[0].completion_ids[0] for group in groups] == [1, 2, 3, 4]  # each got its own


def test_which_of_several_traces_changes_from_step_to_step_and_is_reproducible():
    def chosen(step, seed=0):
        (group,), _ = collect([encoded(1, 3)], step=step, seed=seed)
        return group.rollouts[-1].completion_ids[1]

    assert [chosen(step) for step in range(30)] == [chosen(step) for step in range(30)]
    assert {chosen(step) for step in range(30)} == {50, 51, 52}
    assert [chosen(step) for step in range(30)] != [chosen(step, seed=1) for step in range(30)]


def test_several_traces_a_group():
    (group,), _ = collect([encoded(1, 3)], **{"rollout.traces": 2})
    assert [one.off_policy for one in group.rollouts] == [False, False, True, True]


@pytest.mark.parametrize("method", ["on_policy", "sft_rl", "on_policy_shaping"])
def test_methods_without_traces_in_reinforcement_sample_all(method):
    (group,), _ = collect([encoded(1, 3)], method=method)
    assert not any(one.off_policy for one in group.rollouts)
    assert len(group.rollouts) == 4


def test_a_completion_that_was_cut_off_is_not_verified_and_earns_nothing():
    (group,), graded = collect([encoded(1)])
    assert graded == [("1 0", "1 0"), ("1 1", "1 0"), ("1 3", "1 0")]  # not the third; no special token
    assert [one.reward for one in group.rollouts] == [1, 0, 0, 0]
    assert [one.finished for one in group.rollouts] == [True, True, False, True]


def test_a_trace_earns_what_its_verification_said():
    (right,), _ = collect([encoded(1, 1)])
    (wrong,), _ = collect([encoded(1, 1, reward=0.0)])
    assert (right.rollouts[-1].reward, wrong.rollouts[-1].reward) == (1, 0)
    assert right.rollouts[-1].behavior_logprobs == [0.0] * 3  # pi_phi = 1


def test_a_traces_own_logprobs_are_used():
    problem = encoded(1)
    trace = EncodedTrace((1, 9), (-0.1, -0.2), "t", 1.0)
    (group,), _ = collect([EncodedProblem(problem.problem, problem.prompt_ids, (trace,))])
    assert group.rollouts[-1].behavior_logprobs == (-0.1, -0.2)


# -- verifying while others are generated


class StreamingFake(FakeEngine):
    """Hands over the groups one by one, the last first, each after `seconds`."""

    def __init__(self, log, seconds=0.0):
        super().__init__()
        self.log, self.seconds = log, seconds

    def stream(self, prompt_ids, n, sampling):
        completions = self.generate(prompt_ids, n, sampling)
        for index in reversed(range(len(prompt_ids))):
            time.sleep(self.seconds)
            self.log.append(f"generated {prompt_ids[index][0]}")
            yield index, completions[index]


def in_the_background(workers, log, seconds=0.0):
    """A `submit` whose verdicts are found out beside the caller, `seconds` a completion."""

    def verify(pairs):
        time.sleep(seconds * len(pairs))
        return [Verdict(text == answer, text) for text, answer in pairs]

    def submit(pairs):
        log.append(f"submitted {pairs[0][1].split()[0]}")
        return workers.submit(verify, list(pairs))

    return submit


def test_a_group_is_verified_as_soon_as_the_engine_hands_it_over():
    problems, log = [encoded(number, number % 2) for number in range(1, 6)], []
    with ThreadPoolExecutor(1) as workers:
        groups = collect_groups(
            problems, engine=StreamingFake(log), submit=in_the_background(workers, log), **around_collecting()
        )
    numbers = [5, 3, 1, 4, 2]  # those with a trace need fewer rollouts: a call of their own
    assert log == [line for number in numbers for line in (f"generated {number}", f"submitted {number}")]
    assert groups == collect(problems)[0]  # as if nothing had been streamed


def test_only_waiting_counts_as_verifying():
    with ThreadPoolExecutor(1) as workers:
        clock = Clock()
        collect_groups(
            [encoded(number) for number in range(1, 5)],
            engine=StreamingFake([], seconds=0.2),
            submit=in_the_background(workers, [], seconds=0.05),  # 3 of 4 completions have ended: 0.15 a group
            **around_collecting() | {"clock": clock},
        )
    metrics = clock.metrics()
    assert metrics["time/generate"] >= 0.8
    assert 0.1 < metrics["time/verify"] < 0.45  # the last group; 0.6 if it began when all were generated


def test_a_block_within_a_block_counts_once():
    clock = Clock()
    with clock("outer"):
        time.sleep(0.02)
        with clock("inner"):
            time.sleep(0.2)
            with clock("outer"):
                time.sleep(0.02)
        with clock("inner"):
            pass
    metrics = clock.metrics()
    assert 0.04 <= metrics["time/outer"] < 0.2 <= metrics["time/inner"]
    assert metrics["time/outer"] + metrics["time/inner"] <= metrics["time/step"]


def failing(failures, verified, cut_off=2):
    own = [Rollout((1,), (2,), (-0.5,), False, True, 0.0, "", "timeout" if place < failures else None)
           for place in range(verified)]  # fmt: skip
    cut = [Rollout((1,), (2,), (-0.5,), False, False, 0.0, "") for _ in range(cut_off)]  # were not verified
    trace = Rollout((1,), (2,), (0.0,), True, True, 1.0, "")
    return [Group(Problem("p", "q", "a"), [*own, trace]), Group(Problem("p", "q", "a"), [*cut, trace])]


@pytest.mark.parametrize(
    ("limit", "failures", "stops"), [(0.5, 1, False), (0.5, 2, False), (0.5, 3, True), (0.0, 1, True), (1.0, 4, False)]
)
def test_how_many_failures_stop_a_run(limit, failures, stops):
    groups = failing(failures, 4)
    if stops:
        with pytest.raises(RunError, match=f"failed on {failures} of 4 completions of a step \\(first: timeout\\)"):
            refuse_failing_verifier(groups, limit)
    else:
        refuse_failing_verifier(groups, limit)


def rewarded(rewards, traces):
    off_policy = [False] * (len(rewards) - traces) + [True] * traces
    rollouts = [
        Rollout((1,), (2, 9), (-0.5, -1.5), off, True, reward, "")
        for off, reward in zip(off_policy, rewards, strict=True)
    ]
    return Group(Problem("p", "q", "a"), rollouts)


@pytest.mark.parametrize(
    ("method", "scale", "expected"),
    [
        ("luffy", "none", [-0.5, 0.5, -0.5, 0.5]),
        ("luffy", "std", [-0.8660239, 0.8660239, -0.8660239, 0.8660239]),
        ("rl_sft", "none", [-1 / 3, 2 / 3, -1 / 3, 2 / 3]),  # the baseline is that of the own rollouts
    ],
)
def test_advantages_by_hand(method, scale, expected):
    group = rewarded([0, 1, 0, 1], traces=1)
    assign_advantages([group], METHODS[method], load_config(overrides={"objective.scale": scale}))
    assert group.advantages == pytest.approx(expected, rel=1e-6)


def test_metrics_of_groups_by_hand():
    groups = [rewarded([0, 1, 0, 1], 1), rewarded([0, 0, 0, 1], 1), rewarded([1, 1, 1, 1], 1)]
    assign_advantages(groups, METHODS["luffy"], load_config())
    metrics = group_metrics(groups)
    assert metrics == pytest.approx(
        {
            "reward/on_policy": 4 / 9,
            "reward/traces": 1.0,
            "groups/all_failed": 1 / 3,
            "groups/all_solved": 1 / 3,
            "guidance/trace_advantage": (0.5 + 0.75 + 0) / 3,
            "policy/entropy": 1.0,
            "completion/length": 2.0,
            "completion/truncated": 0.0,
            "verifier/failures": 0.0,
        }
    )


def test_metrics_without_traces_do_not_name_them():
    groups = [rewarded([0, 1], 0)]
    assign_advantages(groups, METHODS["on_policy"], load_config())
    assert not {"reward/traces", "guidance/trace_advantage"} & set(group_metrics(groups))
