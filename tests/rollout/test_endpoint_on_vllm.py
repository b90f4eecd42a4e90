"""What the client of OpenAI-compatible servers promises, asked of a real one: vLLM's, with the miniature.

It promises less than an engine: no tokens, and no new weights. What it shares with them is asked as in the contract.
"""

import pytest
import torch

from luffy.config import Config
from luffy.data.miniature import evaluation_problems
from luffy.errors import ModelError
from luffy.evaluation import EngineSampler
from luffy.evaluation.endpoint_sampler import EndpointSampler
from luffy.policy import Scorer, load_model, model_folder
from luffy.rollout import Sampling, TransformersEngine
from luffy.rollout.endpoint import EndpointClient, Question
from luffy.rollout.vllm_control import VllmServer
from luffy.rollout.vllm_launch import LaunchedServer
from small_engines import TOLERANCE, needs_vllm

pytestmark = needs_vllm
MODEL = str(model_folder("miniature"))
PROBLEMS = [problem for name in ("short", "worked", "unrelated") for problem in evaluation_problems(name, 4)]
SETTINGS = {
    "dtype": "float32",  # of itself it takes a type of 16 bits
    "enforce_eager": True,
    "kv_cache_memory_bytes": 2**28,
    "max_model_len": 128,
    "generation_config": "vllm",
}


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    process = LaunchedServer(MODEL, SETTINGS, tmp_path_factory.mktemp("served") / "vllm.log")
    server = VllmServer(process.url, patience=240)
    server.is_gone = process.gone
    server.persist("starting", lambda: server.get("/v1/models"), longest=2)
    yield f"{process.url}/v1"
    process.close()


@pytest.fixture(scope="module")
def loaded():
    config = Config()
    return load_model("miniature", config.policy)


@pytest.fixture(scope="module")
def sampler(url):
    evaluation = {"engine": "endpoint", "endpoint": url}
    return EndpointSampler(MODEL, Config.model_validate({"data": {"template": "none"}, "evaluation": evaluation}))


def texts(groups):
    return [[one.text for one in group] for group in groups]


def test_samples_come_in_order_n_each_and_greedy_ones_are_those_of_the_transformers_engine(sampler, loaded):
    engine = TransformersEngine(loaded.model, eos_ids=loaded.eos_ids, pad_id=loaded.pad_id)
    sampling = Sampling(60, temperature=0)
    ours = EngineSampler(engine, loaded.tokenizer, "none").sample(PROBLEMS, 1, sampling)
    theirs = sampler.sample(PROBLEMS, 2, sampling)
    assert [[one] for group in theirs for one in group] == [group for group in ours for _ in range(2)]
    assert len({group[0].text for group in ours}) > len(PROBLEMS) // 2


def test_what_is_cut_off_is_not_finished(sampler):
    groups = sampler.sample(PROBLEMS, 3, Sampling(6, temperature=1.0, seed=1))
    samples = [one for group in groups for one in group]
    assert {one.finished for one in samples} == {True, False}
    assert all(one.tokens == 6 for one in samples if not one.finished)
    assert all(one.tokens <= 6 for one in samples)


def test_a_seed_makes_it_reproducible_and_every_sample_is_drawn_for_itself(sampler):
    one, again, other = (texts(sampler.sample(PROBLEMS, 3, Sampling(30, seed=seed))) for seed in (5, 5, 600))
    assert one == again
    assert one != other
    alike = texts(sampler.sample(PROBLEMS[:1] * 4, 3, Sampling(30, seed=5)))
    assert len({text for group in alike for text in group}) > 3


def test_log_probs_are_the_trainers(url, loaded):
    prompt = str(PROBLEMS[0].prompt)
    with EndpointClient(url, MODEL, logprobs=True) as client:
        reply = client.ask(Question(prompt, seed=3), Sampling(30))
    ids = [loaded.tokenizer.convert_tokens_to_ids(text) for text in reply.token_texts]
    asked = loaded.tokenizer(prompt)["input_ids"]
    scores = Scorer(loaded.model, pad_id=0, chunk_elements=10**6)([asked], [ids], temperature=1.0)
    assert float((torch.tensor(reply.logprobs) - scores.logprobs.detach()).abs().max()) < TOLERANCE


@pytest.mark.parametrize(
    ("model", "prompt", "said"),
    [("absent", "W1+1:", "is 'absent' served there"), (MODEL, "W" + "1+" * 100, "status 400.*128")],
)
def test_what_it_cannot_answer_is_said_at_once(url, model, prompt, said):
    with EndpointClient(url, model) as client, pytest.raises(ModelError, match=said):
        client.ask(Question(prompt, seed=0), Sampling(5))
