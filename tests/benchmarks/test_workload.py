"""The benchmarks' own rules: both sides must do the work that a measurement asks for."""

import pytest
import torch
from doubling import exponent
from measuring import outcome
from transformers import GenerationConfig
from workload import END, PAD, SHAPES, Lengths, Work, build_model, draw_problems, reward

from luffy.rollout import Sampling, TransformersEngine
from luffy.rollout.decoding import LeanDecoder, PlainDecoder, SharedPromptDecoder

LENGTHS = [3, 5, 9, 4]
PROMPTS = [[7, 8, 9, 10], [11, 12, 13, 14]]


def model_with_lengths():
    model = build_model(SHAPES["tiny"]).eval()
    Lengths(LENGTHS, prompt=4).attach(model)
    return model


@pytest.mark.parametrize("decoder", [LeanDecoder, SharedPromptDecoder, PlainDecoder])
def test_our_engine_gives_completions_of_the_lengths_asked_for(decoder):
    engine = TransformersEngine(build_model(SHAPES["tiny"]).eval(), eos_ids=[END], pad_id=PAD)
    with Lengths(LENGTHS, prompt=4).at_decoders():
        engine.generate(PROMPTS, 4, Sampling(12))
        assert engine._decoder is LeanDecoder, "the lengths do not stand in the way of the fastest path"
        engine._decoder = decoder
        for _ in range(2):  # a second step begins anew
            groups = engine.generate(PROMPTS, 4, Sampling(20))
            assert [[len(one.token_ids) for one in group] for group in groups] == [LENGTHS, LENGTHS]
            assert all(one.finished for group in groups for one in group)
    drawn = engine.generate(PROMPTS, 4, Sampling(20))
    assert [[len(one.token_ids) for one in group] for group in drawn] != [LENGTHS, LENGTHS]


def test_transformers_generate_gives_the_same_lengths():
    prompts = torch.tensor(PROMPTS).repeat_interleave(4, dim=0)
    settings = GenerationConfig(max_new_tokens=12, do_sample=True, eos_token_id=END, pad_token_id=PAD)
    output = model_with_lengths().generate(prompts, attention_mask=torch.ones_like(prompts), generation_config=settings)
    ends = (output[:, 4:] == END).int()
    assert (ends.argmax(dim=1) + 1).tolist() == LENGTHS * 2
    assert ends.sum(dim=1).tolist() == [1] * 8


def test_training_sees_the_model_as_it_is():
    prompts = torch.tensor(PROMPTS)
    with torch.enable_grad():
        logits = model_with_lengths()(input_ids=prompts, use_cache=False).logits
    assert torch.equal(logits, build_model(SHAPES["tiny"]).eval()(input_ids=prompts, use_cache=False).logits)


def test_a_group_has_right_and_wrong_completions_and_a_right_trace():
    work = Work("tiny", groups=1, lengths=LENGTHS, trace=10, prompt=4)
    marks = [reward(f"w9 w{2 + place}") for place in range(len(LENGTHS))]
    assert set(marks) == {0.0, 1.0}
    assert reward(draw_problems(work, 1)[0].traces[0].text) == 1.0
    assert reward("") == 0.0
    assert work.trained_tokens == sum(LENGTHS) + 10 + 5 * 4


@pytest.mark.parametrize(
    ("ours", "goal", "verdict"),
    [
        (3.0, ">= 3", "reached"),
        ({"median": 2.9, "low": 1.0, "high": 9.0}, ">= 3", "missed"),
        (0.03, "<= 3 %", "reached"),
        (0.031, "<= 3 %", "missed"),
        (None, "<= 3 %", "not measured"),
    ],
)
def test_a_verdict_compares_the_median_with_the_goal(ours, goal, verdict):
    assert outcome("a", "b", ours, goal)["verdict"] == verdict


def test_the_exponent_of_a_square_is_two():
    found = exponent((2, 4, 8), [4.0, 16.0, 64.0])
    assert found == pytest.approx({"median": 2.0, "low": 2.0, "high": 2.0})
