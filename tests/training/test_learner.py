"""The update: exact under any split into micro-batches, equal to a plain reference, and safe when numbers go wrong."""

import copy
import json
import math

import pytest
import torch

from luffy import RunError, load_config
from luffy.algorithm import METHODS
from luffy.config import known_keys
from luffy.policy import LoadedModel, MicroBatch, Scorer
from luffy.policy.load import disable_dropout
from luffy.training.groups import assign_advantages
from luffy.training.learner import Learner
from luffy.training.rows import reinforcement_rows, token_shares
from luffy.training.schedule import learning_rate
from luffy.types import Group, Problem, Rollout
from plain_loop import plain_loss
from tiny_models import VOCABULARY, build_model

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
    settings = {
        "method": method,
        "rollout.max_tokens": 40,
        "optimizer.learning_rate": 1e-3,
        "sft.learning_rate": 1e-3,
        "sft.schedule": "constant",
    } | {key.replace("__", "."): value for key, value in overrides.items()}
    loaded = LoadedModel(build_model(dtype=dtype), None, (2,), 0)
    learner = Learner(loaded, load_config(overrides=settings))
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
        def split(self, prompts, completions, budget):
            batches = (list(range(piece, len(prompts), pieces)) for piece in range(pieces))
            return [MicroBatch(batch, 1, 0) for batch in batches if batch]

        monkeypatch.setattr(Scorer, "micro_batches", split)
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
    right = token_shares(traces, learner.config, "token")
    means = [share for part in (traces[:2], traces[2:]) for share in token_shares(part, learner.config, "token")]
    assert right == [pytest.approx(right[0])] * len(traces)
    assert max(means) > 1.5 * min(means)


@pytest.mark.parametrize("budget", [1, 60, 10**6])
def test_the_token_budget_does_not_change_the_weights(budget):
    expected = train_steps(build_learner())
    torch.testing.assert_close(
        train_steps(build_learner(policy__token_budget=budget)), expected, rtol=1e-10, atol=1e-10
    )


def watch_gradients(learner):
    """The gradients of every optimizer step to come, before each step is taken."""
    seen, step = [], learner.optimizer.step

    def watched():
        seen.append([parameter.grad.clone() for parameter in learner.policy.parameters()])
        step()

    learner.optimizer.step = watched
    return seen


def assert_gradients(ours, model):
    for one, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-9, atol=1e-12)


def test_the_gradient_is_that_of_the_formula():
    learner, groups = build_learner(optimizer__max_gradient_norm=1e9), build_groups()
    model = copy.deepcopy(learner.policy)
    loss = plain_loss(model, groups, 40)
    loss.backward()
    seen = watch_gradients(learner)
    assign_advantages(groups, learner.method, learner.config)
    metrics = learner.update(groups, 0)
    assert metrics["update/loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert_gradients(seen[0], model)


def test_several_updates_compare_with_the_policy_that_sampled():
    learner, groups = build_learner(optimizer__max_gradient_norm=1e9, updates_per_step=2), build_groups()[:2]
    assign_advantages(groups, learner.method, learner.config)
    seen, models = watch_gradients(learner), []
    models.append(copy.deepcopy(learner.policy))
    apply = learner._apply_gradient
    learner._apply_gradient = lambda *given: (apply(*given), models.append(copy.deepcopy(learner.policy)))[0]
    learner.update(groups, 0)
    for model, part, ours in zip(models[:2], (groups[:1], groups[1:]), seen, strict=True):
        model.zero_grad()
        plain_loss(model, part, 40, behavior="engine").backward()
        assert_gradients(ours, model)


def test_the_gradient_of_supervised_learning_is_that_of_the_mean_over_tokens():
    learner = build_learner("sft", optimizer__max_gradient_norm=1e9, policy__token_budget=50)
    traces = [one for group in as_supervised(build_groups()) for one in group.rollouts]
    model = copy.deepcopy(learner.policy)
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for one in traces:
        row = torch.tensor([[*one.prompt_ids, *one.completion_ids]])
        logits = model(input_ids=row).logits[0, len(one.prompt_ids) - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(one.completion_ids), reduction="sum")
        tokens += len(one.completion_ids)
    (total / tokens).backward()
    seen = watch_gradients(learner)
    metrics = learner.imitate(traces, 0)
    assert metrics["update/loss"] == pytest.approx(total.item() / tokens, rel=1e-10)
    assert_gradients(seen[0], model)


@pytest.mark.parametrize("key", ["objective.entropy_coefficient", "objective.kl_coefficient", "updates_per_step"])
def test_micro_batches_do_not_change_the_weights_with(key):
    value = 2 if key == "updates_per_step" else 0.3
    expected = train_steps(build_learner(**{key: value}))
    for budget in (1, 60):
        ours = train_steps(build_learner(policy__token_budget=budget, **{key: value}))
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_another_trainer_of_this_process_changes_nothing():
    from accelerate import Accelerator

    expected, learner = train_steps(build_learner()), build_learner()
    other = Accelerator(cpu=True, gradient_accumulation_steps=4)  # as the Trainer of transformers makes one
    other.sync_gradients = False  # and in the middle of accumulating
    assert torch.equal(train_steps(learner), expected)


def test_rows_without_advantage_have_no_gradient_and_are_not_computed(monkeypatch):
    skipping = build_learner()
    skipped = train_steps(skipping)
    with monkeypatch.context() as patch:
        patch.setattr("luffy.training.rows.contributes", lambda advantage, config: True)
        torch.testing.assert_close(skipped, train_steps(build_learner()), rtol=1e-12, atol=1e-12)
    groups = build_groups()
    assign_advantages(groups, skipping.method, skipping.config)
    assert len(reinforcement_rows(groups, skipping.config)) == 8  # the group in which everything is solved is left out


def test_the_order_of_groups_and_rollouts_does_not_matter():
    turned = [Group(group.problem, group.rollouts[::-1]) for group in build_groups()[::-1]]
    torch.testing.assert_close(
        train_steps(build_learner(), turned), train_steps(build_learner()), rtol=1e-9, atol=1e-10
    )


def test_dropout_follows_from_the_step():
    """A run that goes on draws as one that was never interrupted, whatever was drawn before."""

    def trained(noise, share):
        learner = build_learner(policy__gradient_checkpointing=True)
        embedding = learner.policy.get_input_embeddings()
        embedding.register_forward_hook(lambda module, _, out: torch.dropout(out, share, module.training))
        torch.manual_seed(noise)
        return train_steps(learner)

    assert torch.equal(trained(1, 0.5), trained(2, 0.5))
    assert not torch.equal(trained(1, 0.5), trained(1, 0.0))


def test_gradient_checkpointing_changes_nothing():
    learner = build_learner(policy__gradient_checkpointing=True)
    learner.policy.activation_checkpointing_enable({"use_reentrant": False})
    for layer in learner.policy.model.layers:
        layer.self_attn.attention_dropout = 0.5
    disable_dropout(learner.policy)  # as load_model does: checkpointing needs training mode
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


OF_SOME_METHODS = [
    ("rl_sft", "objective.sft_coefficient", 0.1),
    ("luffy_clip", "objective.clip_range", 1e6),
    ("sft", "sft.learning_rate", 2e-3),
    ("sft", "sft.schedule", "linear"),
    ("sft", "sft.warmup_steps", 2),
]


def test_no_setting_is_forgotten():
    tested = {*SETTINGS, *(key for _, key, _ in OF_SOME_METHODS), "objective.exponent"}
    elsewhere = {"sft.steps", "sft.batch_size"}  # of the run, tests/training/test_run.py
    assert {key for key in known_keys() if key.startswith(("objective.", "optimizer.", "sft."))} <= tested | elsewhere


@pytest.mark.parametrize(("method", "key", "value"), OF_SOME_METHODS)
def test_every_setting_of_some_methods_has_an_effect(method, key, value):
    several = {"updates_per_step": 1 if method == "sft" else 2}
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


def test_poisoned_weights_stop_the_run_and_no_metric_is_nan():
    learner, groups = build_learner(updates_per_step=2), build_groups()
    assign_advantages(groups, learner.method, learner.config)
    next(learner.policy.parameters()).data[:] = float("nan")
    metrics = learner.update(groups, 0)
    assert metrics["update/skipped"] == 2
    json.dumps(metrics, allow_nan=False)
    with pytest.raises(RunError, match=r"Lower optimizer\.learning_rate"):
        learner.update(groups, 1)


def test_of_two_updates_the_good_one_is_reported():
    learner, groups = build_learner(updates_per_step=2), build_groups()[:2]
    assign_advantages(groups, learner.method, learner.config)
    groups[0].advantages[0] = float("nan")
    metrics = learner.update(groups, 0)
    assert metrics["update/skipped"] == 1
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["update/gradient_norm"] > 0


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
