"""LUFFY inside TRL's own trainer: the same weights as ours, traces where they belong, and errors before training."""

import itertools
import logging

import pytest
import torch
from workload import norm_in_its_own_precision

from luffy import load_config
from luffy.algorithm import METHODS
from luffy.data.miniature import training_problems
from luffy.policy import load_model
from luffy.training.groups import assign_advantages
from luffy.training.learner import Learner
from luffy.types import Group, Problem, Rollout

pytest.importorskip("trl")

from datasets import Dataset, IterableDataset
from trl import GRPOConfig

from luffy.integrations.trl import LuffyTrainer

GROUP, PROBLEMS, TOKENS, STEPS, RATE = 4, 2, 32, 2, 1e-3
TEMPERATURE = 2.0  # at which the base is sometimes wrong
NORMALIZATION = {"dr_grpo": "constant", "grpo": "sequence", "dapo": "token"}


def data(**columns):
    """Chains that the base works out, some of them rightly; the second has no trace, the third has three."""
    problems = training_problems(
        problems=PROBLEMS * STEPS, traced=PROBLEMS * STEPS, style="teacher", wrong=0, operations=(2, 3), seed=0
    )
    texts = [one.traces[0].text for one in problems]
    traces = [[texts[0]], [], texts[:1] + texts[2:], [texts[3]]]
    rows = [
        {"prompt": one.prompt.replace("Q", "W"), "answer": one.answer, "traces": given} | columns
        for one, given in zip(problems, traces, strict=True)
    ]
    return Dataset.from_list(rows)


def correct(completions, answer, **_):
    return [float(text.rpartition("#")[2] == right) for text, right in zip(completions, answer, strict=True)]


def miniature(dtype="float64"):
    loaded = load_model("miniature", load_config(overrides={"policy.dtype": dtype}).policy)
    norm_in_its_own_precision(loaded.model)
    return loaded


class Watched(LuffyTrainer):
    """Keeps what it generates, in the order of the problems."""

    def __init__(self, *positional, **named):
        super().__init__(*positional, **named)
        self.seen = []

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        rows = zip(
            inputs,
            (ids[mask.bool()].tolist() for ids, mask in zip(batch["prompt_ids"], batch["prompt_mask"], strict=True)),
            (ids[mask.bool()].tolist() for ids, mask in zip(
                batch["completion_ids"], batch["completion_mask"], strict=True
            )),
            batch["off_policy"].tolist(),
            batch["advantages"].tolist(),
            strict=True,
        )  # fmt: skip
        self.seen.append(list(rows))
        return batch


class Exact(Watched):
    """Takes log-probs from the whole logits in float64; TRL's own head computes in float32."""

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, **_):
        logits = model(input_ids=input_ids, attention_mask=attention_mask).logits[:, -logits_to_keep - 1 : -1]
        logprobs = (logits / self.temperature).log_softmax(-1)
        chosen = logprobs.gather(-1, input_ids[:, -logits_to_keep:, None]).squeeze(-1)
        return chosen, -(logprobs.exp() * logprobs).sum(-1), None


def build(folder, loaded=None, *, kind=Watched, dataset=None, settings=None, **options):
    loaded = loaded or miniature()
    settings = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": GROUP * PROBLEMS // 2,
        "num_generations": GROUP,
        "max_completion_length": TOKENS,
        "temperature": TEMPERATURE,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "beta": 0.0,
        "use_bias_correction_kl": False,
        "use_cpu": True,
        "bf16": False,
        "activation_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        "shuffle_dataset": False,
    } | (settings or {})
    return kind(
        model=loaded.model,
        processing_class=loaded.tokenizer,
        reward_funcs=correct,
        args=GRPOConfig(**settings),
        train_dataset=data() if dataset is None else dataset,
        **options,
    )


def train_ours(seen, loss_type, method, beta):
    """The same completions and traces through our learner."""
    loaded = miniature()
    config = load_config(
        overrides={
            "method": method,
            "rollout.max_tokens": TOKENS,
            "rollout.group_size": GROUP,
            "rollout.temperature": TEMPERATURE,
            "objective.normalization": NORMALIZATION[loss_type],
            "objective.kl_coefficient": beta,
            "policy.dtype": "float64",
            "optimizer.learning_rate": RATE,
        }
    )
    learner = Learner(loaded, config)
    learner.start_phase("rl", 0, STEPS)
    for step, rows in enumerate(seen):
        groups = []
        for _, members in itertools.groupby(rows, lambda row: row[0]["prompt"]):
            rollouts = [
                Rollout(prompt, ids, [0.0] * len(ids), off_policy, True, reward(example, ids, loaded.tokenizer), "")
                for example, prompt, ids, off_policy, _ in members
            ]
            groups.append(Group(Problem(str(len(groups)), "p", "a"), rollouts))
        assign_advantages(groups, METHODS[method], config)
        assert [value for group in groups for value in group.advantages] == [row[-1] for row in rows]
        learner.update(groups, step)
    return loaded.model


def reward(example, ids, tokenizer):
    return correct([tokenizer.decode(ids, skip_special_tokens=True)], [example["answer"]])[0]


@pytest.mark.parametrize(
    ("loss_type", "method", "beta"),
    [
        ("dr_grpo", "luffy", 0.0),
        ("grpo", "luffy_clip", 0.0),
        ("dapo", "mixed", 0.0),
        pytest.param("dr_grpo", "luffy", 0.5, marks=pytest.mark.slow),
        pytest.param("dr_grpo", "on_policy", 0.0, marks=pytest.mark.slow),
    ],
)
def test_two_steps_give_the_weights_that_ours_give(loss_type, method, beta, tmp_path):
    trainer = build(tmp_path, settings={"loss_type": loss_type, "beta": beta}, method=method, kind=Exact)
    if beta:
        trainer.ref_model = miniature().model  # TRL loads it in float32
    trainer.train()
    theirs, ours = trainer.model.state_dict(), train_ours(trainer.seen, loss_type, method, beta).state_dict()
    assert theirs.keys() == ours.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(theirs[name], tensor, rtol=0, atol=1e-9)
    before = miniature().model.state_dict()
    assert max(float((theirs[name] - before[name]).abs().max()) for name in before) > RATE  # it did learn


def test_with_trls_own_head_they_differ_by_its_float32(tmp_path):
    trainer = build(tmp_path, settings={"max_steps": 1})
    trainer.train()
    before, ours = miniature().model, train_ours(trainer.seen, "dr_grpo", "luffy", 0.0)
    start, theirs, ours = (
        torch.nn.utils.parameters_to_vector(model.parameters()).detach() for model in (before, trainer.model, ours)
    )
    assert (theirs - ours).norm() < 1e-3 * (ours - start).norm()


def test_traces_are_the_last_of_their_groups_and_end_once(tmp_path):
    trainer = build(tmp_path)
    trainer.train()
    end = trainer.processing_class.eos_token_id
    places, texts = [], set()
    for rows in trainer.seen:
        for place, (example, _, ids, off_policy, _) in enumerate(rows):
            if off_policy:
                places.append((example["prompt"], place % GROUP))
                text = trainer.processing_class.decode(ids[:-1])
                assert (text in example["traces"], ids[-1], ids.count(end)) == (True, end, 1)
                texts.add(text)
    traced = [row["prompt"] for row in data() if row["traces"]]
    assert sorted(places) == sorted((prompt, GROUP - 1) for prompt in traced)
    assert len(texts) == 3
    log = trainer.state.log_history[0]
    assert 0 < log["guidance/trace_probability"] < 1
    assert 0 < log["guidance/sampled_probability"] < 1
    assert log["entropy"] > 0


def test_several_traces_a_group_and_chosen_by_the_step(tmp_path):
    trainer = build(tmp_path, traces_per_group=2)
    example = data()[2]
    first = trainer._traces_of(example)
    assert len(first) == 2
    assert trainer._traces_of(example) == first  # as on another process
    chosen = set()
    for step in range(8):
        trainer.state.global_step = step
        chosen.add(str(trainer._traces_of(example)))
    assert len(chosen) > 1
    places = trainer._choose_places([example] * GROUP)
    assert sorted(places) == [GROUP - 2, GROUP - 1]


def test_evaluation_has_no_traces(tmp_path):
    trainer = build(tmp_path, settings={"per_device_eval_batch_size": GROUP})
    metrics = trainer.evaluate(data().select(range(1)))
    assert not any(row[3] for rows in trainer.seen for row in rows)
    assert "eval_guidance/trace_probability" not in metrics
    assert metrics["eval_guidance/sampled_probability"] > 0


def test_a_trace_that_is_too_long_is_left_out_and_said_once(tmp_path, caplog):
    trainer = build(tmp_path, settings={"max_completion_length": 8})
    with caplog.at_level(logging.WARNING, "luffy.integrations.trl"):
        trainer.train()
    assert not any(row[3] for rows in trainer.seen for row in rows)
    assert [record.message for record in caplog.records if record.name == "luffy.integrations.trl"] == [
        "a trace of 19 tokens is longer than max_completion_length (8); such traces are left out"
    ]


def test_unused_columns_are_removed_but_not_the_traces(tmp_path):
    trainer = build(tmp_path, settings={"remove_unused_columns": True})
    trainer._set_signature_columns_if_needed()
    assert "traces" in trainer._signature_columns


@pytest.mark.parametrize(
    ("options", "settings", "message"),
    [
        ({"method": "rl_sft"}, {}, r"method is 'rl_sft'; LuffyTrainer knows: on_policy, luffy, luffy_clip, mixed"),
        ({"traces_per_group": GROUP}, {}, r"traces_per_group is 4; .* less than num_generations \(4\)"),
        ({"trace_column": "solution"}, {}, "no column 'solution' with traces; it has: prompt, answer, traces"),
        ({"rollout_func": print}, {}, "without rollout_func"),
        ({}, {"loss_type": "cispo"}, "loss_type is 'cispo'; LuffyTrainer knows: dr_grpo, grpo, dapo"),
        ({}, {"delta": 1.5}, "delta is 1.5; LuffyTrainer has no such term: set it to None"),
        ({}, {"beta": 0.1, "use_bias_correction_kl": True}, "use_bias_correction_kl is True; .* set it to False"),
        ({"method": "luffy_clip"}, {"epsilon_high": 0.3}, "epsilon is 0.2 and epsilon_high 0.3"),
    ],
)
def test_what_it_cannot_do_is_said_before_training(options, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, settings=settings, **options)


def test_a_column_that_holds_no_texts(tmp_path):
    with pytest.raises(ValueError, match="column 'traces' holds int; a trace is a text, or a list of texts"):
        build(tmp_path, dataset=data(traces=[3])).train()


def test_a_single_text_a_stream_and_a_trl_that_generates_otherwise(tmp_path, monkeypatch):
    rows = [{"prompt": "Q17+5:", "answer": "22", "traces": "17+5=22#22"}, {"prompt": "Q3+5:", "answer": "8"}]
    stream = IterableDataset.from_generator(lambda: iter(rows * 8))
    trainer = build(tmp_path, dataset=stream)
    trainer.train()
    assert [row[3] for row in trainer.seen[0]].count(True) == 1
    monkeypatch.setattr(LuffyTrainer, "_generate_single_turn", LuffyTrainer.__mro__[1]._generate_single_turn)
    with pytest.raises(RuntimeError, match=r"no trace was placed; use trl 1\.16"):
        build(tmp_path).train()
