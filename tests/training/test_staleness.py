"""Learning one step behind: how much a rollout of the earlier policy weighs."""

import math

import pytest

from luffy import load_config
from luffy.algorithm import METHODS
from luffy.policy import LoadedModel, Scorer
from luffy.training.groups import assign_advantages
from luffy.training.learner import Learner
from luffy.types import Group, Problem, Rollout
from tiny_models import build_model

PROMPT, COMPLETIONS = (3, 4, 5), ((6, 7, 8, 9), (10, 11))


def gradient_norm(method, ratio):
    """Of an update whose rollouts the earlier policy wrote with 1 / ratio of the probability that they have now."""
    settings = {"rollout.ahead": 1, "objective.importance_cap": 2.0, "rollout.max_tokens": 8, "method": method}
    learner = Learner(LoadedModel(build_model(), None, (2,), 0), load_config(overrides=settings))
    learner.start_phase("rl", 0, 1)
    scores = Scorer(learner.policy, pad_id=0, chunk_elements=10**6)([PROMPT] * 2, COMPLETIONS, temperature=1.0)
    now = scores.logprobs.detach().split([len(one) for one in COMPLETIONS])
    own = [
        Rollout(PROMPT, ids, (logprobs - math.log(ratio)).tolist(), False, True, reward, "")
        for ids, logprobs, reward in zip(COMPLETIONS, now, (1.0, 0.0), strict=True)
    ]
    groups = [Group(Problem("p", "q", "a"), own)]
    assign_advantages(groups, METHODS[method], learner.config)
    return learner.update(groups, 0)["update/gradient_norm"]


@pytest.mark.parametrize("method", ["luffy", "on_policy"])
@pytest.mark.parametrize(("ratio", "weight"), [(0.25, 0.25), (1.5, 1.5), (5.0, 2.0)])
def test_a_token_weighs_as_the_policies_differ_up_to_the_cap(method, ratio, weight):
    assert gradient_norm(method, ratio) == pytest.approx(weight * gradient_norm(method, 1.0), rel=1e-6)
