import pytest
import torch

from luffy import Problem, Trace, load_config
from luffy.algorithm import METHODS
from luffy.data import EncodedProblem, EncodedTrace
from luffy.policy import load_tokenizer
from luffy.reward import Verdict
from luffy.training.clock import Clock
from luffy.training.groups import assign_advantages, collect_groups, draw, seed_of
from luffy.types import Completion


@pytest.mark.parametrize(("items", "count"), [(10, 3), (4, 4), (3, 7)])
def test_every_epoch_draws_every_item_once(items, count):
    drawn = [item for step in range(items) for item in draw(range(items), step, count, "seed", 0)]
    for start in range(0, items * count, items):
        assert sorted(drawn[start : start + items]) == list(range(items))


def test_what_is_drawn_depends_on_seed_and_step_alone():
    assert draw(range(50), 7, 5, "a", 1) == draw(range(50), 7, 5, "a", 1)
    assert draw(range(50), 7, 5, "a", 1) != draw(range(50), 7, 5, "a", 2)


class ScriptedEngine:
    """Answers '#1' and ends; every third completion is cut off."""

    def __init__(self, tokenizer):
        self.tokens = tuple(tokenizer("#1")["input_ids"])
        self.asked = []

    def generate(self, prompt_ids, n, sampling):
        self.asked.append((len(prompt_ids), n))
        return [
            [Completion(self.tokens, (-0.5,) * len(self.tokens), place % 3 != 2) for place in range(n)]
            for _ in prompt_ids
        ]


def encoded(name, answer, traces):
    made = tuple(EncodedTrace((5, 6, 1), None, f"trace {place}", 1.0) for place in range(traces))
    return EncodedProblem(Problem(name, "Q1:", answer, traces=tuple(Trace("t") for _ in made)), (3, 4), made)


def collect(method, problems):
    tokenizer = load_tokenizer("miniature")
    engine, seen = ScriptedEngine(tokenizer), []

    def verify(pairs):
        seen.extend(pairs)
        return [Verdict(text == f"#{answer}", text) for text, answer in pairs]

    config = load_config(overrides={"method": method, "rollout.group_size": 4})
    groups = collect_groups(
        problems, engine=engine, verify=verify, tokenizer=tokenizer, method=METHODS[method], config=config, step=1,
        clock=Clock(),
    )  # fmt: skip
    assign_advantages(groups, METHODS[method], config)
    return groups, engine, seen


def test_groups_have_their_size_whatever_the_traces():
    problems = [encoded("none", "1", 0), encoded("one", "2", 1), encoded("three", "1", 3)]
    groups, engine, seen = collect("luffy", problems)
    assert [len(group.rollouts) for group in groups] == [4, 4, 4]
    assert [sum(one.off_policy for one in group.rollouts) for group in groups] == [0, 1, 1]
    assert sorted(engine.asked) == [(1, 4), (2, 3)]
    assert len(seen) == 3 + 2 + 2  # completions that were cut off have no final answer to verify
    assert [one.reward for one in groups[0].rollouts] == [1, 1, 0, 1]
    assert [one.finished for one in groups[0].rollouts] == [True, True, False, True]
    # the second problem: own rollouts wrong or cut, the trace right
    assert groups[1].advantages == pytest.approx([-0.25, -0.25, -0.25, 0.75])


def test_on_policy_sees_no_trace_and_an_sft_loss_leaves_them_out_of_the_baseline():
    groups, _, _ = collect("on_policy", [encoded("one", "2", 1)])
    assert not any(one.off_policy for one in groups[0].rollouts)
    groups, _, _ = collect("rl_sft", [encoded("one", "1", 1)])
    rewards = torch.tensor([one.reward for one in groups[0].rollouts[:3]])
    assert groups[0].advantages[:3] == pytest.approx((rewards - rewards.mean()).tolist())
