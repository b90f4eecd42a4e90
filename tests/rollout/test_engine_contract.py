"""What every engine promises, asked of each: `make test-vllm` asks vLLM, which needs an environment of its own."""

import copy

import pytest
import torch

from luffy.algorithm import truncated_importance_weights
from luffy.errors import LuffyError
from luffy.rollout import Sampling, TransformersEngine
from small_engines import CONTEXT, EOS, PROMPTS, TOLERANCE, build_policy, gap, needs_vllm, open_vllm

ENGINES = ["transformers", pytest.param("vllm", marks=needs_vllm), pytest.param("vllm_server", marks=needs_vllm)]


@pytest.fixture(scope="module", params=ENGINES)
def opened(request, tmp_path_factory):
    policy = build_policy()
    if request.param == "transformers":
        engine = TransformersEngine(copy.deepcopy(policy), eos_ids=EOS, pad_id=0)
    else:
        engine = open_vllm(tmp_path_factory.mktemp("policy"), policy, request.param)
    yield engine, policy
    engine.close()


@pytest.fixture
def engine(opened):
    """With the weights of `policy`."""
    engine, policy = opened
    engine.update_weights(policy)
    return engine


@pytest.fixture
def policy(opened):
    return opened[1]


def tokens(groups):
    return [[one.token_ids for one in group] for group in groups]


@pytest.mark.parametrize("sampling", [Sampling(20, seed=3), Sampling(20, top_p=0.6, seed=3), Sampling(20, 0.0)])
def test_logprobs_are_the_trainers(engine, policy, sampling):
    assert gap(engine, policy, sampling) < TOLERANCE


def test_groups_come_in_the_order_of_the_prompts_with_n_completions_each(engine):
    groups = engine.generate(PROMPTS, 3, Sampling(8, temperature=0))
    assert [len(group) for group in groups] == [3] * len(PROMPTS)
    for prompt, group in zip(PROMPTS, groups, strict=True):
        (alone,) = engine.generate([prompt], 1, Sampling(8, temperature=0))
        assert {one.token_ids for one in group} == {alone[0].token_ids}
    assert len(set(map(str, tokens(groups)))) > 1
    assert engine.generate([], 4, Sampling(8)) == []


def test_greedy_equals_the_librarys_own(engine, policy):
    for prompt, (completion,) in zip(PROMPTS, engine.generate(PROMPTS, 1, Sampling(12, temperature=0)), strict=True):
        expected = policy.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=list(EOS), pad_token_id=0
        )[0, len(prompt) :]
        assert completion.token_ids == tuple(expected.tolist())


def test_a_completion_ends_with_any_end_token_or_is_cut(engine):
    completions = [one for group in engine.generate(PROMPTS, 40, Sampling(10, seed=2)) for one in group]
    assert {one.finished for one in completions} == {True, False}
    assert {one.token_ids[-1] for one in completions if one.finished} == set(EOS)
    for one in completions:
        assert one.finished == (one.token_ids[-1] in EOS)
        assert not set(one.token_ids[:-1]) & set(EOS)
        assert len(one.token_ids) <= 10 if one.finished else len(one.token_ids) == 10
        assert len(one.logprobs) == len(one.token_ids)


def test_a_seed_makes_it_reproducible_and_every_place_draws_for_itself(engine):
    one, again, other = (tokens(engine.generate(PROMPTS, 3, Sampling(15, seed=seed))) for seed in (5, 5, 6))
    assert one == again
    assert one != other
    assert len(set(one[0])) == 3
    alike = tokens(engine.generate([[8]] * 4, 3, Sampling(15, seed=5)))
    assert len({completion for group in alike for completion in group}) == 12  # no noise is used twice


def test_a_share_of_a_batch_draws_what_the_whole_batch_draws(engine):
    whole = tokens(engine.generate(PROMPTS, 3, Sampling(15, seed=5)))
    assert tokens(engine.generate(PROMPTS[2:], 3, Sampling(15, seed=5, first=2))) == whole[2:]


def test_top_p_keeps_to_the_likely_tokens(engine, policy):
    probabilities = torch.softmax(policy(torch.tensor([PROMPTS[0]])).logits[0, -1], dim=0)
    ordered, order = probabilities.sort(descending=True)
    likely = set(order[: int((ordered.cumsum(0) < 0.5).sum()) + 1].tolist())
    assert len(likely) < 20
    (narrow,), (wide,) = (engine.generate(PROMPTS[:1], 100, Sampling(1, top_p=p, seed=1)) for p in (0.5, 1.0))
    assert {one.token_ids[0] for one in narrow} <= likely
    assert not {one.token_ids[0] for one in wide} <= likely


def test_every_weight_is_updated(engine, policy):
    """Each by itself, so that a stale one shows."""
    for name, _ in policy.named_parameters():
        changed = copy.deepcopy(policy)
        weight = dict(changed.named_parameters())[name]
        with torch.no_grad():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * weight.abs().mean())
        engine.update_weights(changed)
        assert gap(engine, changed, Sampling(20, seed=3)) < TOLERANCE, name
        assert gap(engine, policy, Sampling(20, seed=3)) > 10 * TOLERANCE, name


def test_a_prompt_without_room_for_an_answer_is_refused(engine, policy):
    with pytest.raises(LuffyError, match=r"\d"):
        engine.generate([[1] * (CONTEXT + 1)], 2, Sampling(20))
    assert gap(engine, policy, Sampling(20, seed=3)) < TOLERANCE  # and it goes on


def test_importance_weights_take_rollouts_of_other_weights_to_the_policy(engine, policy):
    """What `objective.importance_cap` does with the engine's log-probs, where its weights are not the policy's."""
    stale = copy.deepcopy(policy)
    with torch.no_grad():
        stale.model.norm.weight.mul_(0.5)
    engine.update_weights(stale)
    (group,) = engine.generate(PROMPTS[:1], 2000, Sampling(1, seed=1))
    tokens = torch.tensor([one.token_ids[0] for one in group])
    theirs = torch.tensor([one.logprobs[0] for one in group])
    ours = torch.log_softmax(policy(torch.tensor(PROMPTS[:1])).logits[0, -1], dim=0).detach()
    weights = truncated_importance_weights(ours[tokens], theirs, cap=1e6)

    def distance(weights):
        """Of the share of each token among the completions, so weighted, from its probability."""
        shares = torch.zeros_like(ours).index_add_(0, tokens, weights.float()) / len(tokens)
        return float((shares - ours.exp()).abs().sum())

    assert distance(weights) < 0.15 < distance(torch.ones_like(weights))
    assert float(truncated_importance_weights(ours[tokens], theirs, cap=1.5).max()) == 1.5


def test_an_adapter_arrives_merged_into_the_weights(engine):
    pytest.importorskip("peft")
    from luffy.config import AdapterConfig
    from luffy.policy.adapters import add_adapter

    policy = build_policy()
    add_adapter(policy, AdapterConfig(rank=4), seed=0)
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    engine.update_weights(policy)
    assert gap(engine, policy, Sampling(20, seed=3)) < TOLERANCE
    assert gap(engine, build_policy(), Sampling(20, seed=3)) > 10 * TOLERANCE
