"""The update: exact under any split into micro-batches, equal to a plain reference, and safe when numbers go wrong."""

import copy

import pytest
import torch
from tiny_models import VOCABULARY, build_model

from luffy import RunError, load_config
from luffy.algorithm import METHODS
from luffy.policy import LoadedModel
from luffy.training.groups import assign_advantages
from luffy.training.learner import Learner
from luffy.training.schedule import learning_rate
from luffy.types import Group, Problem, Rollout

GENERATOR = torch.Generator()


def draw_ids(length):
    return torch.randint(1, VOCABULARY, (length,), generator=GENERATOR).tolist()


def rollout(prompt, length, reward, *, off_policy=False):
    logprobs = [0.0] * length if off_policy else (-torch.rand(length, generator=GENERATOR)).tolist()
    return Rollout(prompt, draw_ids(length), logprobs, off_policy, True, reward, "")


def build_groups():
    """Three groups with uneven lengths: mixed rewards, all own rollouts failed, everything solved."""
    GENERATOR.manual_seed(0)
    groups = []
    for rewards in ([1, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]):
        prompt = draw_ids(3 + len(groups))
        *own, last = rewards
        rollouts = [rollout(prompt, 3 + 4 * place, float(reward)) for place, reward in enumerate(own)]
        rollouts.append(rollout(prompt, 29, float(last), off_policy=True))
        groups.append(Group(Problem(str(len(groups)), "p", "a"), rollouts))
    return groups


def build_learner(method="luffy", dtype=torch.float64, **overrides):
    settings = {"method": method, "rollout.max_tokens": 40, "optimizer.learning_rate": 1e-3} | {
        key.replace("__", "."): value for key, value in overrides.items()
    }
    loaded = LoadedModel(build_model(dtype=dtype), None, (2,), 0)
    learner = Learner(loaded, load_config(overrides=settings | {"sft.learning_rate": 1e-3, "sft.schedule": "constant"}))
    learner.start_phase(METHODS[method].phases[-1], 0, 10)
    return learner


def weights_of(learner):
    return torch.cat([parameter.detach().flatten().clone() for parameter in learner.policy.parameters()])


def train_steps(learner, groups=None, steps=3):
    """A few optimizer steps, as the method's last phase takes them. Returns the weights."""
    groups = build_groups() if groups is None else groups
    assign_advantages(groups, learner.method, learner.config)
    for step in range(steps):
        if learner.phase == "sft":
            learner.imitate([one for group in groups for one in group.rollouts if one.off_policy], step)
        else:
            learner.update(groups, step)
    return weights_of(learner)


def as_supervised(groups):
    """The same rollouts as traces, so that supervised steps see uneven lengths."""
    for group in groups:
        for one in group.rollouts:
            one.off_policy, one.behavior_logprobs = True, [0.0] * len(one.completion_ids)
    return groups


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_do_not_change_the_weights(method, monkeypatch):
    def weights(pieces):
        def split(lengths, budget):
            return [batch for batch in (list(range(piece, len(lengths), pieces)) for piece in range(pieces)) if batch]

        monkeypatch.setattr("luffy.training.learner.split_by_budget", split)
        groups = as_supervised(build_groups()) if METHODS[method].phases == ("sft",) else None
        return train_steps(build_learner(method), groups)

    whole = weights(1)
    assert not torch.equal(whole, weights_of(build_learner(method)))
    for pieces in (2, 7):
        torch.testing.assert_close(weights(pieces), whole, rtol=1e-10, atol=1e-10)


def test_a_mean_of_means_would_be_noticed():
    # what the defect of published SFT baselines does: each micro-batch averaged over its own tokens
    learner = build_learner("sft")
    traces = [one for group in as_supervised(build_groups()) for one in group.rollouts]
    right = learner._weights(traces, "token")
    means = learner._weights(traces[:2], "token") + learner._weights(traces[2:], "token")
    assert right == [pytest.approx(right[0])] * len(traces)
    assert max(means) > 1.5 * min(means)


@pytest.mark.parametrize("budget", [1, 60, 10**6])
def test_the_token_budget_does_not_change_the_weights(budget):
    expected = train_steps(build_learner())
    torch.testing.assert_close(train_steps(build_learner(policy__token_budget=budget)), expected, rtol=1e-10, atol=1e-10)


def test_the_gradient_is_that_of_the_formula():
    """LUFFY on whole logits, a token at a time: -1/(B L) sum of f(rho) A, f(rho) = rho / (rho + 0.1) on traces."""
    learner, groups = build_learner(), build_groups()
    model = copy.deepcopy(learner.policy)
    loss = torch.zeros((), dtype=torch.float64)
    for group in groups:
        rewards = [one.reward for one in group.rollouts]
        for one in group.rollouts:
            advantage = one.reward - sum(rewards) / len(rewards)
            row = torch.tensor([[*one.prompt_ids, *one.completion_ids]])
            logprobs = torch.log_softmax(model(input_ids=row).logits[0], dim=-1)
            for place, token in enumerate(one.completion_ids):
                logprob = logprobs[len(one.prompt_ids) + place - 1, token]
                p = logprob.exp()
                term = p / (p + 0.1) if one.off_policy else p / p.detach()
                loss = loss - term * advantage / (12 * 40)
    loss.backward()
    seen = []
    learner.optimizer.step = lambda: seen.extend(parameter.grad.clone() for parameter in learner.policy.parameters())
    learner.config = load_config(overrides={"rollout.max_tokens": 40, "optimizer.max_gradient_norm": 1e9})
    assign_advantages(groups, learner.method, learner.config)
    metrics = learner.update(groups, 0)
    assert metrics["update/loss"] == pytest.approx(loss.item(), rel=1e-10)
    for ours, parameter in zip(seen, model.parameters(), strict=True):
        torch.testing.assert_close(ours, parameter.grad, rtol=1e-9, atol=1e-12)


def test_rows_without_advantage_have_no_gradient_and_are_not_computed(monkeypatch):
    skipping = build_learner()
    rows = skipping._reinforcement_rows
    everything = build_learner()
    monkeypatch.setattr(everything, "_contributes", lambda advantage: True)
    torch.testing.assert_close(train_steps(skipping), train_steps(everything), rtol=1e-12, atol=1e-12)
    groups = build_groups()
    assign_advantages(groups, skipping.method, skipping.config)
    assert len(rows(groups)) == 8  # the group in which everything is solved is left out


def test_the_order_of_groups_and_rollouts_does_not_matter():
    turned = [Group(group.problem, group.rollouts[::-1]) for group in build_groups()[::-1]]
    torch.testing.assert_close(train_steps(build_learner(), turned), train_steps(build_learner()), rtol=1e-9, atol=1e-10)


def test_gradient_checkpointing_changes_nothing():
    learner = build_learner(policy__gradient_checkpointing=True)
    learner.policy.gradient_checkpointing_enable({"use_reentrant": False})
    torch.testing.assert_close(train_steps(learner), train_steps(build_learner()), rtol=1e-10, atol=1e-10)


SETTINGS = {
    "objective.gamma": 0.5,
    "objective.shaping": "sqrt",
    "objective.normalization": "token",
    "objective.scale": "std",
    "objective.entropy_coefficient": 0.1,
    "objective.kl_coefficient": 0.5,
    "objective.importance_cap": 1.0,
    "optimizer.learning_rate": 2e-3,
    "optimizer.weight_decay": 0.5,
    "optimizer.beta1": 0.5,
    "optimizer.beta2": 0.5,
    "optimizer.max_gradient_norm": 1e-8,
    "optimizer.warmup_steps": 2,
    "optimizer.schedule": "linear",
    "updates_per_step": 2,
    "rollout.max_tokens": 80,
    "rollout.temperature": 0.5,
}


@pytest.mark.parametrize("key", SETTINGS)
def test_every_setting_has_an_effect(key):
    changed = train_steps(build_learner(**{key: SETTINGS[key]}))
    assert not torch.allclose(changed, train_steps(build_learner()), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("method", "key", "value"),
    [("rl_sft", "objective.sft_coefficient", 0.1), ("luffy_clip", "objective.clip_range", 1e6)],
)
def test_every_setting_of_some_methods_has_an_effect(method, key, value):
    several = {"updates_per_step": 2}
    changed = train_steps(build_learner(method, **several, **{key: value}))
    assert not torch.allclose(changed, train_steps(build_learner(method, **several)), rtol=0, atol=1e-12)


def test_the_exponent_belongs_to_the_power_shaping():
    power = {"objective.shaping": "power"}
    changed = train_steps(build_learner(**power, **{"objective.exponent": 1.0}))
    assert not torch.allclose(changed, train_steps(build_learner(**power)), rtol=0, atol=1e-12)
    plain = train_steps(build_learner(**{"objective.shaping": "none"}))
    torch.testing.assert_close(changed, plain, rtol=1e-9, atol=1e-12)


def test_truncated_importance_sampling_with_one_and_several_updates():
    for updates in (1, 3):
        capped = train_steps(build_learner(updates_per_step=updates, **{"objective.importance_cap": 1.5}))
        assert torch.isfinite(capped).all()


def test_a_step_that_is_not_finite_is_skipped_and_three_in_a_row_stop():
    learner, groups = build_learner(), build_groups()
    assign_advantages(groups, learner.method, learner.config)
    before = weights_of(learner)
    groups[0].advantages[0] = float("nan")
    for step in range(2):
        metrics = learner.update(groups, step)
        assert metrics["update/skipped"] == 1
        assert "update/gradient_norm" not in metrics
    assert torch.equal(weights_of(learner), before)
    with pytest.raises(RunError, match="3 updates in a row"):
        learner.update(groups, 2)
    assert torch.equal(weights_of(learner), before)


def test_a_good_step_between_bad_ones_starts_the_count_anew():
    learner, groups = build_learner(), build_groups()
    for step, value in enumerate((float("inf"), 0.5, float("inf"), float("inf"))):
        assign_advantages(groups, learner.method, learner.config)
        groups[0].advantages[0] = value
        learner.update(groups, step)
    assert torch.isfinite(weights_of(learner)).all()


def test_a_batch_without_signal_changes_nothing():
    learner = build_learner("on_policy")
    groups = [Group(group.problem, group.rollouts[:1]) for group in build_groups()[1:2]]
    before = weights_of(learner)
    assert torch.equal(train_steps(learner, groups), before)


def test_rl_with_an_sft_loss_manages_without_traces():
    groups = [Group(group.problem, group.rollouts[:3]) for group in build_groups()]
    torch.testing.assert_close(
        train_steps(build_learner("rl_sft"), groups), train_steps(build_learner("on_policy"), groups)
    )


def test_metrics_of_an_update():
    learner, groups = build_learner(), build_groups()
    assign_advantages(groups, learner.method, learner.config)
    metrics = learner.update(groups, 0)
    assert {
        "update/loss", "update/gradient_norm", "update/skipped", "perf/padding_fraction", "perf/tokens_per_second",
        "guidance/trace_probability", "policy/engine_gap", "optimizer/learning_rate",
    } <= set(metrics)  # fmt: skip
    assert 0 <= metrics["guidance/trace_probability"] <= 1
    assert learner.tokens_trained == sum(
        len(one.prompt_ids) + len(one.completion_ids) for group in groups[:2] for one in group.rollouts
    )


def test_a_metric_that_does_not_exist_for_a_method_is_absent():
    learner = build_learner("on_policy")
    groups = [Group(group.problem, group.rollouts[:3]) for group in build_groups()]
    assign_advantages(groups, learner.method, learner.config)
    assert "guidance/trace_probability" not in learner.update(groups, 0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 3, 2 / 3, 1.0, 0.8535533906, 0.5, 0.1464466094]),
    ],
)
def test_schedules_by_hand(schedule, expected):
    rates = [learning_rate(step, peak=1.0, schedule=schedule, warmup_steps=2, steps=6) for step in range(6)]
    assert rates == pytest.approx(expected)
