"""Token log-probs and entropy in chunks equal the plain computation on whole logits."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
)

from luffy.policy import Scorer, score_hidden_states
from tiny_models import VOCABULARY, build_model

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


SCALED = {
    "gemma": (Gemma2ForCausalLM, Gemma2Config, {"final_logit_softcapping": 0.5, "head_dim": 16}),
    "granite": (GraniteForCausalLM, GraniteConfig, {"logits_scaling": 3.0}),
    "cohere": (CohereForCausalLM, CohereConfig, {"logit_scale": 0.3}),
}


@pytest.mark.parametrize("name", SCALED)
def test_known_scalings_and_caps_of_logits_are_applied(name, caplog):
    architecture, configuration, special = SCALED[name]
    config = configuration(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.3, **special,
    )  # fmt: skip
    torch.manual_seed(0)
    model = architecture(config).double().eval()
    scores = Scorer(model, pad_id=0, chunk_elements=100)(PROMPTS, COMPLETIONS)
    expected = [plain(model, *row)[0] for row in zip(PROMPTS, COMPLETIONS, strict=True)]
    torch.testing.assert_close(scores.logprobs, torch.cat(expected), rtol=1e-6, atol=1e-6)  # they cap in float32
    assert "computed whole" not in caplog.text


@pytest.mark.parametrize("scale", [1.0, 1e-4])  # also where all logits are small
def test_a_head_that_does_more_than_its_configuration_says_is_noticed(caplog, scale):
    model = build_model()
    model.lm_head.weight.data *= scale
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


def test_scores_do_not_depend_on_the_other_rows_or_their_order(model):
    scorer = Scorer(model, pad_id=0, chunk_elements=100)
    together = scorer(PROMPTS, COMPLETIONS).logprobs.split([len(one) for one in COMPLETIONS])
    turned = scorer(PROMPTS[::-1], COMPLETIONS[::-1]).logprobs.split([len(one) for one in COMPLETIONS[::-1]])
    for place in range(len(PROMPTS)):
        alone = scorer([PROMPTS[place]], [COMPLETIONS[place]]).logprobs
        torch.testing.assert_close(together[place], alone, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(turned[-1 - place], alone, rtol=1e-10, atol=1e-10)


def test_what_fills_up_the_rows_has_no_influence(model):
    one, other = (Scorer(model, pad_id=pad, chunk_elements=100)(PROMPTS, COMPLETIONS) for pad in (0, 33))
    torch.testing.assert_close(one.logprobs, other.logprobs, rtol=1e-12, atol=1e-12)


def test_only_a_chunk_of_logits_exists_at_once(model):
    sizes = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda module, given, output: sizes.append(output.numel()))
    scorer = Scorer(model, pad_id=0, chunk_elements=2 * VOCABULARY)
    scorer(PROMPTS[:1], COMPLETIONS[:1])  # the first use compares body and head with the model
    sizes.clear()
    scorer(PROMPTS, COMPLETIONS).logprobs.sum().backward()
    assert max(sizes) == 2 * VOCABULARY
    assert sum(sizes) == 2 * 8 * VOCABULARY  # each of the 8 tokens' logits once, and once more for the gradient


def by_parts(scores, part):
    """Some loss that is a sum over tokens, whose weights depend on the token."""
    weights = torch.linspace(-1, 2, 8, dtype=scores.logprobs.dtype)[part]
    return (weights * scores.logprobs.exp() + 0.3 * scores.entropy).sum()


@pytest.mark.parametrize("chunk_elements", [1, 3 * VOCABULARY, 10**9])
@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_a_loss_taken_chunk_by_chunk_has_the_gradient_of_the_whole(model, chunk_elements, factor):
    def gradients(loss):
        model.zero_grad()
        (factor * loss).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    scorer = Scorer(model, pad_id=0, chunk_elements=chunk_elements)
    plain_scores = scorer(PROMPTS, COMPLETIONS, entropy_gradient=True)
    whole = by_parts(plain_scores, slice(0, 8))
    scores = scorer(PROMPTS, COMPLETIONS, entropy_gradient=True, loss=by_parts)
    torch.testing.assert_close(scores.loss, whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(scores.logprobs, plain_scores.logprobs.detach(), rtol=1e-12, atol=1e-12)
    for one, other in zip(gradients(scores.loss), gradients(whole), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(scorer(PROMPTS, COMPLETIONS, loss=by_parts).loss, whole)


def test_a_loss_taken_at_once_computes_each_logit_once(model):
    sizes = []
    model.get_output_embeddings().register_forward_hook(lambda module, given, output: sizes.append(output.numel()))
    scorer = Scorer(model, pad_id=0, chunk_elements=2 * VOCABULARY)
    scorer.paths  # noqa: B018, the first use compares with the model
    sizes.clear()
    scorer(PROMPTS, COMPLETIONS, loss=by_parts).loss.backward()
    assert max(sizes) == 2 * VOCABULARY
    assert sum(sizes) == 8 * VOCABULARY


def test_scores_and_their_gradients_against_finite_differences():
    torch.manual_seed(0)
    hidden = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 6, 3, 3, 1])

    def both(states):
        scores = score_hidden_states(states, targets, lambda one: one, chunk_tokens=5, entropy_gradient=True)
        return scores.logprobs, scores.entropy

    assert torch.autograd.gradcheck(both, (hidden,))


def test_logits_far_apart_give_finite_scores_and_gradients():
    hidden = torch.tensor([[1e4, -1e4, 0.0], [-300.0, 0.0, 300.0]], requires_grad=True)
    scores = score_hidden_states(hidden, torch.tensor([1, 0]), lambda one: one, chunk_tokens=9, entropy_gradient=True)
    assert scores.logprobs.tolist() == [-2e4, -600.0]
    (scores.logprobs.sum() + scores.entropy.sum()).backward()
    assert hidden.grad.isfinite().all()


def test_score_hidden_states_by_hand():
    hidden = torch.tensor([[0.0, 0.0], [1.0, 0.0]], dtype=torch.float64)
    scores = score_hidden_states(hidden, torch.tensor([0, 0]), lambda states: states, chunk_tokens=1)
    # softmax of (0, 0) is (1/2, 1/2), of (1, 0) it is (0.73106, 0.26894)
    torch.testing.assert_close(scores.logprobs, torch.tensor([-0.6931471806, -0.3132616875], dtype=torch.float64))
    torch.testing.assert_close(scores.entropy, torch.tensor([0.6931471806, 0.5822031062], dtype=torch.float64))
