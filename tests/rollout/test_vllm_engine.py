"""What is particular to vLLM: settings, seeds, failures, closing."""

import copy
from itertools import pairwise

import pytest
import torch

from luffy.config import Config
from luffy.errors import ConfigError, RunError
from luffy.rollout import Sampling
from luffy.rollout.vllm_settings import seed_of_prompt
from small_engines import HAS_VLLM, PROMPTS, TOLERANCE, build_policy, gap, needs_vllm, open_vllm


def test_seeds_of_prompts_lie_far_apart_and_go_by_place():
    seeds = sorted(seed_of_prompt(Sampling(1, seed=seed), place) for seed in range(3) for place in range(50))
    assert min(later - earlier for earlier, later in pairwise(seeds)) > 10**6
    assert 0 <= seeds[0] <= seeds[-1] < 2**62
    assert seed_of_prompt(Sampling(1, seed=1, first=4), 0) == seed_of_prompt(Sampling(1, seed=1), 4)


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_that_vllm_is_missing_is_said(tmp_path):
    with pytest.raises(ConfigError, match=r"rollout.engine=vllm needs the package vllm: pip install vllm"):
        open_vllm(tmp_path, build_policy())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0.7, "top_p": 0.9}, "no log-probs before top-p"),
        ({"dtype": "float64"}, "has no float64"),
        ({"device": "cuda:1", "ahead": 1}, "vLLM takes the policy's"),
    ],
)
def test_what_vllm_cannot_do_is_refused_before_anything_is_loaded(settings, said):
    with pytest.raises(ValueError, match=said):
        Config.model_validate({"rollout": {"engine": "vllm"} | settings})


@needs_vllm
def test_at_another_temperature_close_and_failed_updates(tmp_path):
    policy = build_policy()
    engine = open_vllm(tmp_path, policy, temperature=0.7)
    assert gap(engine, policy, Sampling(20, temperature=0.7, seed=3)) < TOLERANCE
    groups = engine.generate(PROMPTS, 2, Sampling(9, temperature=0.7, top_p=0.9))
    assert all(value != value for group in groups for one in group for value in one.logprobs)  # NaN: not known
    wrong = copy.deepcopy(policy)
    wrong.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 32, bias=False)
    with pytest.raises(RunError, match="does not take the policy's weights"):
        engine.update_weights(wrong)
    with pytest.raises(RunError, match="weights of two versions may be mixed"):
        engine.generate(PROMPTS, 1, Sampling(3))
    engine.close()
    engine.close()
    with pytest.raises(RunError, match="is closed"):
        engine.generate(PROMPTS, 1, Sampling(3))
    again = open_vllm(tmp_path, policy)
    assert gap(again, policy, Sampling(20, seed=3)) < TOLERANCE
    again.close()


@needs_vllm
def test_asleep_between_batches_it_draws_the_same_and_takes_new_weights(tmp_path):
    """On a CPU vLLM goes through the whole of it and gives no memory back."""
    policy, other = build_policy(), build_policy(1)
    engine = open_vllm(tmp_path, policy, sleep=True)
    assert engine._asleep == {"weights", "kv_cache"}
    once, again = (engine.generate(PROMPTS, 2, Sampling(9, seed=1)) for _ in range(2))
    assert once == again
    assert engine._llm.llm_engine.is_sleeping()
    engine.update_weights(other)
    assert engine._asleep == {"kv_cache"}
    assert gap(engine, other, Sampling(20, seed=3)) < TOLERANCE
    engine.close()


@needs_vllm
def test_a_call_that_takes_long_is_named_in_the_log(tmp_path, caplog):
    engine = open_vllm(tmp_path, build_policy(), patience=0.01)
    engine.generate(PROMPTS, 8, Sampling(40, seed=1))
    assert "vLLM has been at work for 0.01 s (rollout.vllm.patience)" in caplog.text
    engine.close()
