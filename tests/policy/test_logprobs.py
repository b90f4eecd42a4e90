"""Token log-probs and entropy in chunks equal the plain computation on whole logits."""

import pytest
import torch
from tiny_models import VOCABULARY, build_model
from transformers import Gemma2Config, Gemma2ForCausalLM

from luffy.policy import Scorer, score_hidden_states

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
COMPLETIONS = [[10, 11], [12, 13, 14, 15, 16], [17]]


def plain(model, prompt, completion, temperature=1.0):
    """Log-probs and entropy of one unpadded row from whole logits."""
    row = torch.tensor([[*prompt, *completion]])
    logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1] / temperature
    everything = torch.log_softmax(logits, dim=-1)
    logprobs = everything.gather(-1, torch.tensor(completion)[:, None]).squeeze(-1)
    return logprobs, -(everything.exp() * everything).sum(dim=-1)


@pytest.mark.parametrize("chunk_elements", [1, 3 * VOCABULARY, 10**9])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scores_equal_whole_logits_whatever_chunk_and_padding(model, chunk_elements, temperature):
    scorer = Scorer(model, pad_id=0, chunk_elements=chunk_elements)
    scores = scorer(PROMPTS, COMPLETIONS, temperature=temperature)
    expected = [plain(model, *row, temperature) for row in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.testing.assert_close(scores.logprobs, torch.cat([one[0] for one in expected]), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores.entropy, torch.cat([one[1] for one in expected]), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk_elements", [1, 10**9])
def test_gradients_equal_those_of_whole_logits(model, chunk_elements):
    def gradients(logprobs, entropy):
        model.zero_grad()
        (logprobs.exp().sum() + 0.3 * entropy.sum()).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    scores = Scorer(model, pad_id=0, chunk_elements=chunk_elements)(PROMPTS, COMPLETIONS, entropy_gradient=True)
    ours = gradients(scores.logprobs, scores.entropy)
    parts = [plain(model, *row) for row in zip(PROMPTS, COMPLETIONS, strict=True)]
    expected = gradients(torch.cat([one[0] for one in parts]), torch.cat([one[1] for one in parts]))
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def test_entropy_carries_a_gradient_only_when_asked():
    scorer = Scorer(build_model(), pad_id=0, chunk_elements=100)
    assert not scorer(PROMPTS, COMPLETIONS).entropy.requires_grad
    assert scorer(PROMPTS, COMPLETIONS, entropy_gradient=True).entropy.requires_grad


def test_known_caps_on_logits_are_applied():
    config = Gemma2Config(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, final_logit_softcapping=0.5, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    capped = Gemma2ForCausalLM(config).double().eval()
    scores = Scorer(capped, pad_id=0, chunk_elements=100)(PROMPTS, COMPLETIONS)
    expected = [plain(capped, *row)[0] for row in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.testing.assert_close(scores.logprobs, torch.cat(expected), rtol=1e-8, atol=1e-8)


def test_a_head_that_does_more_than_its_configuration_says_is_noticed(caplog):
    model = build_model()
    plain_forward = model.forward

    def forward(*args, **kwargs):
        output = plain_forward(*args, **kwargs)
        output.logits = output.logits * 3
        return output

    model.forward = forward
    scores = Scorer(model, pad_id=0, chunk_elements=100)(PROMPTS, COMPLETIONS)
    expected = [plain(model, *row)[0] for row in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.testing.assert_close(scores.logprobs, torch.cat(expected), rtol=1e-10, atol=1e-10)
    assert "computed whole" in caplog.text


def test_score_hidden_states_by_hand():
    hidden = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    scores = score_hidden_states(hidden, torch.tensor([0, 0]), lambda states: states, chunk_tokens=1)
    # softmax of (0, 0) is (1/2, 1/2), of (1, 0) it is (0.73106, 0.26894)
    torch.testing.assert_close(scores.logprobs, torch.tensor([-0.6931471806, -0.3132616875], dtype=torch.float64))
    torch.testing.assert_close(scores.entropy, torch.tensor([0.6931471806, 0.5822031062], dtype=torch.float64))
