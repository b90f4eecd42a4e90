"""The engine's completions and log-probs: right, reproducible, independent of batching."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

from luffy.errors import ModelError
from luffy.policy import Scorer
from luffy.rollout import Sampling, TransformersEngine, draw_tokens, keep_nucleus
from tiny_models import VOCABULARY, build_model

PROMPTS = [[1, 2, 3, 4, 5, 6, 7], [8], [9, 10, 11], [12, 13]]
EOS = (30, 31)


def engine(model, eos=EOS, **options):
    return TransformersEngine(model, eos_ids=eos, pad_id=0, **options)


def gap(model, sampling):
    """The largest difference between the log-probs of the engine and those of the trainer; checks uneven rows."""
    groups = engine(model).generate(PROMPTS, 5, sampling)
    rows = [(prompt, one) for prompt, group in zip(PROMPTS, groups, strict=True) for one in group]
    scores = Scorer(model, pad_id=0, chunk_elements=10**6)(
        [prompt for prompt, _ in rows], [one.token_ids for _, one in rows], temperature=sampling.temperature
    )
    assert len({len(one.token_ids) for _, one in rows}) > 3
    sampled = torch.tensor([value for _, one in rows for value in one.logprobs], dtype=torch.float64)
    return float((sampled - scores.logprobs.detach().double()).abs().max())


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("kind", ["llama", "qwen"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_sampling_logprobs_are_the_trainers(kind, dtype, tolerance, temperature):
    assert gap(build_model(kind, dtype), Sampling(20, temperature=temperature, seed=3)) < tolerance


def test_sampling_logprobs_under_top_p_are_those_before_truncation(model):
    assert gap(model, Sampling(20, top_p=0.6, seed=3)) < 1e-10


def test_a_sliding_window_shorter_than_the_rows():
    config = MistralConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=6, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    assert gap(MistralForCausalLM(config).double().eval(), Sampling(20, seed=3)) < 1e-10


def test_dropout_of_a_model_in_training_mode_is_not_sampled_from():
    model = build_model()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train()
    assert engine(model).generate(PROMPTS, 2, Sampling(9)) == engine(build_model()).generate(PROMPTS, 2, Sampling(9))


def test_batches_and_leaving_rows_do_not_change_what_is_sampled(model):
    sampling = Sampling(25, seed=1)
    together = engine(model).generate(PROMPTS, 4, sampling)
    apart = engine(model, batch_tokens=1).generate(PROMPTS, 4, sampling)
    assert [[one.token_ids for one in group] for group in together] == [
        [one.token_ids for one in group] for group in apart
    ]
    # the first prompt's rows are the same with and without the other prompts
    alone = engine(model).generate(PROMPTS[:1], 4, sampling)
    assert [one.token_ids for one in alone[0]] == [one.token_ids for one in together[0]]


def test_a_seed_makes_it_reproducible(model):
    one, again, other = (engine(model).generate(PROMPTS, 3, Sampling(15, seed=seed)) for seed in (5, 5, 6))
    assert one == again
    assert one != other
    assert len({completion.token_ids for completion in one[0]}) == 3  # the rollouts of a group differ


def test_greedy_equals_the_librarys_own(model):
    ours = engine(model).generate(PROMPTS, 1, Sampling(12, temperature=0))
    for prompt, (completion,) in zip(PROMPTS, ours, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=list(EOS), pad_token_id=0
        )[0, len(prompt) :]
        assert completion.token_ids == tuple(expected.tolist())


def test_a_completion_ends_with_an_end_token_or_is_cut(model):
    groups = engine(model).generate(PROMPTS, 20, Sampling(10, seed=2))
    completions = [one for group in groups for one in group]
    assert {one.finished for one in completions} == {True, False}
    for one in completions:
        assert one.finished == (one.token_ids[-1] in EOS)
        assert not set(one.token_ids[:-1]) & set(EOS)
        assert len(one.token_ids) == 10 if not one.finished else len(one.token_ids) <= 10
        assert len(one.logprobs) == len(one.token_ids)


def test_new_weights_are_used_and_the_mode_is_restored():
    model, other = build_model(seed=0), build_model(seed=1)
    ours = engine(model)
    before = ours.generate(PROMPTS, 1, Sampling(10, temperature=0))
    ours.update_weights(other)
    assert ours.generate(PROMPTS, 1, Sampling(10, temperature=0)) == engine(other).generate(
        PROMPTS, 1, Sampling(10, temperature=0)
    )
    assert ours.generate(PROMPTS, 1, Sampling(10, temperature=0)) != before
    model.train()
    ours.generate(PROMPTS, 1, Sampling(3))
    assert model.training
    with pytest.raises(IndexError):
        ours.generate([[VOCABULARY + 1]], 1, Sampling(3))
    assert model.training


def test_groups_come_in_the_order_of_the_prompts(model):
    groups = engine(model).generate(PROMPTS, 3, Sampling(8, temperature=0))
    for prompt, group in zip(PROMPTS, groups, strict=True):
        (alone,) = engine(model).generate([prompt], 1, Sampling(8, temperature=0))
        assert [one.token_ids for one in group] == [alone[0].token_ids] * 3


def test_no_prompts_give_no_groups(model):
    assert engine(model).generate([], 4, Sampling(8)) == []


def test_finished_rows_leave_the_batch(model):
    sizes = []
    ours = engine(model, eos=range(0, VOCABULARY, 4))
    ours.generate(PROMPTS, 1, Sampling(1))  # the first use tries the model
    model.register_forward_pre_hook(
        lambda module, given, named: sizes.append(len(named["input_ids"])), with_kwargs=True
    )
    groups = ours.generate(PROMPTS, 16, Sampling(40, seed=0))
    used = sum(len(one.token_ids) for group in groups for one in group)
    assert sizes[:2] == [len(PROMPTS), max(sizes)]  # one prefill a prompt
    assert used <= sum(sizes[1:]) + len(PROMPTS) * 16 <= 1.25 * used  # few rows go on after their end


def test_nucleus_by_hand():
    probabilities = torch.tensor([[0.5, 0.1, 0.3, 0.1]])
    assert keep_nucleus(probabilities, 0.5).tolist() == [[0.5, 0.0, 0.0, 0.0]]
    torch.testing.assert_close(keep_nucleus(probabilities, 0.7), torch.tensor([[0.5, 0.0, 0.3, 0.0]]))
    torch.testing.assert_close(keep_nucleus(probabilities, 0.99), probabilities)


def test_draws_follow_the_distribution():
    logits = torch.tensor([1.0, 0.0, -2.0, float("-inf"), 0.5])
    noise = (torch.arange(10_000) + 0.5) / 10_000  # an even grid instead of luck
    drawn, logprobs = draw_tokens(logits.expand(10_000, -1), Sampling(1), noise)
    shares = torch.bincount(drawn, minlength=5) / 10_000
    torch.testing.assert_close(shares, torch.softmax(logits, dim=0), rtol=0, atol=2e-4)
    torch.testing.assert_close(logprobs, torch.log_softmax(logits, dim=0)[drawn])


@settings(max_examples=50)
@given(st.lists(st.sampled_from([-torch.inf, -20.0, 0.0, 3.0]), min_size=2, max_size=9).filter(lambda x: max(x) > -1))
def test_what_has_no_probability_is_never_drawn(logits):
    for noise in (0.0, 0.5, 1 - 2**-24):
        drawn, _ = draw_tokens(torch.tensor([logits]), Sampling(1), torch.tensor([noise]))
        assert logits[int(drawn)] > -torch.inf


def test_top_p_stays_inside_the_nucleus():
    model = build_model()
    groups = engine(model, eos=[]).generate([[1, 2]], 200, Sampling(1, top_p=0.4, seed=0))
    logits = model(input_ids=torch.tensor([[1, 2]])).logits[0, -1]
    inside = keep_nucleus(torch.softmax(logits, dim=0)[None].float(), 0.4)[0] > 0
    assert 1 <= int(inside.sum()) < VOCABULARY
    assert all(inside[one.token_ids[0]] for one in groups[0])


def test_completions_end_where_the_context_does(model, caplog):
    assert model.config.max_position_embeddings == 256
    groups = engine(model, eos=()).generate([[1] * 240, [2]], 2, Sampling(20, seed=3))
    assert {len(one.token_ids) for group in groups for one in group} == {16}
    assert not any(one.finished for group in groups for one in group)
    assert "the model reads 256 tokens and the longest prompt has 240: completions are cut off after 16" in caplog.text


def test_a_prompt_without_room_for_an_answer_is_refused(model):
    with pytest.raises(ModelError, match=r"a prompt has 256 tokens and the model reads 256.*policy.context_length"):
        engine(model).generate([[1] * 256], 2, Sampling(20, seed=3))


@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_weights_are_copied_in_place_into_the_engines_dtype(kind):
    copy, policy = build_model(kind, torch.bfloat16, seed=0), build_model(kind, torch.float32, seed=1)
    before = {name: weight.data_ptr() for name, weight in copy.state_dict().items()}
    engine(copy).update_weights(policy)
    assert {name: weight.data_ptr() for name, weight in copy.state_dict().items()} == before
    for name, weight in policy.state_dict().items():
        assert torch.equal(copy.state_dict()[name], weight.to(torch.bfloat16)), name


def test_weights_of_another_architecture_are_refused():
    with pytest.raises(ModelError, match=r"not that of the policy: model\.layers\.0\.self_attn\.k_proj.bias differs"):
        engine(build_model("llama")).update_weights(build_model("qwen"))


@pytest.mark.parametrize("batch_tokens", [65536, 60])
def test_a_prompt_is_handed_over_when_its_last_completion_has_ended(model, batch_tokens):
    one = engine(model, batch_tokens=batch_tokens)
    sampling = Sampling(20, seed=3)
    handed = list(one.stream(PROMPTS, 2, sampling))
    assert sorted(index for index, _ in handed) == list(range(len(PROMPTS)))
    assert [group for _, group in sorted(handed)] == one.generate(PROMPTS, 2, sampling)
    seen, running = [], one.stream(PROMPTS, 2, sampling)
    counted = model.register_forward_hook(lambda *given: seen.append(1))
    next(running)
    before = len(seen)
    assert list(running) == handed[1:]
    counted.remove()
    assert 0 < before < len(seen)  # the others went on afterwards
