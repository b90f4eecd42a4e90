"""Packed rows give what every row gives by itself: values and gradients, for every kind of attention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)

from luffy.policy import Scorer, pack_rows
from luffy.policy.packing import _prompt_is_shared
from tiny_models import ARCHITECTURES, VOCABULARY, WITH_HEADS, build_architecture, build_model

# 3 rows of a prompt longer than they are, 2 of a short one with a long trace, and one of one token
PROMPTS = [list(range(1, 21))] * 3 + [[5, 6]] * 2 + [[9, 9, 9]]
COMPLETIONS = [[1, 2, 3], [4], [5, 6, 7, 8, 9], list(range(30)), [7, 8, 9, 10], [3]]


def scores_and_gradients(model, *, packed, rows=None):
    model.zero_grad()
    scorer = Scorer(model, pad_id=0, chunk_elements=10 * VOCABULARY, packed=packed)
    scores = scorer(*(rows or (PROMPTS, COMPLETIONS)), entropy_gradient=True)
    (scores.logprobs.exp().sum() + 0.1 * scores.entropy.sum()).backward()
    assert scorer.paths.packed == packed
    return scores, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_rows_equal_padded_ones(name):
    """Within what rotary positions and softmax round in float32 in some architectures."""
    padded, expected = scores_and_gradients(build_architecture(name), packed=False)
    packed, ours = scores_and_gradients(build_architecture(name), packed=True)
    torch.testing.assert_close(packed.logprobs, padded.logprobs, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(packed.entropy, padded.entropy, rtol=1e-8, atol=1e-8)
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=20)),
        min_size=1,
        max_size=8,
    )
)
def test_any_rows_score_as_each_does_alone(rows):
    prompts = [[kind + 1] * (1 + 7 * kind) for kind, _ in rows]
    completions = [completion for _, completion in rows]
    scorer = Scorer(build_model(), pad_id=0, chunk_elements=100)
    together = scorer(prompts, completions).logprobs.split([len(one) for one in completions])
    for prompt, completion, ours in zip(prompts, completions, together, strict=True):
        torch.testing.assert_close(scorer([prompt], [completion]).logprobs, ours, rtol=1e-9, atol=1e-9)


def test_a_prompt_is_computed_once_and_a_last_token_never():
    packed = pack_rows(PROMPTS, COMPLETIONS, torch.device("cpu"))
    assert packed.input_ids.numel() == (20 + 2 + 0 + 4) + (2 + 29 + 3) + 3
    assert packed.position_ids[0, :24].tolist() == [*range(20), 20, 21, 20, 21]
    assert packed.predictors[:4].tolist() == [19, 20, 21, 19]
    assert packed.targets.tolist() == [token for completion in COMPLETIONS for token in completion]


def test_where_a_prompt_attends_once():
    assert _prompt_is_shared([10, 20], 100)
    assert not _prompt_is_shared([300, 20], 10)
    assert not _prompt_is_shared([10], 100)


REFUSED = {
    "gemma2 caps attention": lambda: Gemma2ForCausalLM(
        Gemma2Config(**WITH_HEADS, attn_logit_softcapping=5.0, attn_implementation="eager")
    ),
    "mamba has a state": lambda: MambaForCausalLM(
        MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=4, pad_token_id=0)
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_cannot_be_packed_is_padded_and_says_so_once(name, caplog):
    torch.manual_seed(0)
    model = REFUSED[name]().eval()
    scorer = Scorer(model, pad_id=0, chunk_elements=100)
    prompts, completions = [[1, 2], [1, 2]], [[3, 4, 5], [6, 7, 8]]
    scores = scorer(prompts, completions)
    scorer(prompts, completions)
    alone = torch.cat([scorer([one], [other]).logprobs for one, other in zip(prompts, completions, strict=True)])
    torch.testing.assert_close(scores.logprobs, alone, rtol=1e-4, atol=1e-4)
    assert caplog.text.count("padded instead of packed") == 1


def test_a_window_that_no_layer_speaks_of_is_not_packed(caplog):
    model = build_architecture("llama, grouped queries")
    model.config.sliding_window = 4
    assert not Scorer(model, pad_id=0, chunk_elements=100).paths.packed
