"""Endpoints that are real: `transformers serve`, started here, and any server that the environment names.

pip install fastapi uvicorn openai                      # what `transformers serve` needs
LUFFY_TEST_ENDPOINT=http://localhost:8000/v1 LUFFY_TEST_MODEL=NAME make test-slow           # vllm serve, say
"""

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from luffy import load_config
from luffy.evaluation import evaluate
from luffy.rollout import Sampling
from luffy.rollout.endpoint import EndpointClient, Question
from tiny_models import build_byte_tokenizer

pytestmark = pytest.mark.slow

CHATML = "{% for message in messages %}<|user|>{{ message.content }}<|end|>{% endfor %}A:"
ROWS = [{"id": f"p{n}", "prompt": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(12)]


def save_tiny_model(folder):
    torch.manual_seed(0)
    tokenizer = build_byte_tokenizer(chat_template=CHATML)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=0, eos_token_id=1, max_position_embeddings=2048,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def wait_for(url, process, seconds=120):
    for _ in range(seconds * 2):
        try:
            urllib.request.urlopen(url, timeout=1)
        except urllib.error.HTTPError:
            return
        except OSError:
            assert process.poll() is None, "the server has ended"
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"{url}: no answer in {seconds} seconds")


@pytest.fixture(scope="module", params=["transformers serve", "of the environment"])
def server(request, tmp_path_factory):
    """(address, model)"""
    if request.param == "of the environment":
        if "LUFFY_TEST_ENDPOINT" not in os.environ:
            pytest.skip("LUFFY_TEST_ENDPOINT names no server")
        yield os.environ["LUFFY_TEST_ENDPOINT"], os.environ["LUFFY_TEST_MODEL"]
        return
    for package in ("fastapi", "uvicorn", "openai"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"transformers serve needs {package}")
    model = save_tiny_model(tmp_path_factory.mktemp("served"))
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    command = [os.path.join(os.path.dirname(sys.executable), "transformers"), "serve", model, "--port", str(port)]
    process = subprocess.Popen([*command, "--device", "cpu"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://localhost:{port}/health", process)
        yield f"http://localhost:{port}/v1", model
    finally:
        process.terminate()
        process.wait(30)


def test_answers_are_whole_and_the_same_when_greedy(server):
    url, model = server
    question = Question(({"role": "user", "content": "What is 2 + 2?"},), seed=0)
    with EndpointClient(url, model) as client:
        first, second = (client.ask(question, Sampling(24, temperature=0.0)) for _ in range(2))
        assert isinstance(first.text, str)
        assert first.text == second.text
        assert 0 < first.tokens <= 24
        assert first.prompt_tokens > 0
        assert first.finished == (first.tokens < 24) or first.finished
        assert not client.ask(question, Sampling(2, temperature=0.0)).finished


def test_a_collection_that_is_killed_goes_on(server, tmp_path):
    url, model = server
    questions, out = tmp_path / "q.jsonl", tmp_path / "t.jsonl"
    questions.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    command = [sys.executable, "-m", "luffy", "data", "collect", str(questions), "--endpoint", url, "--model", model]
    command += ["--out", str(out), "--concurrency", "2", "reward.kind=number", "rollout.max_tokens=64"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / "t.jsonl.journal"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and len(journal.read_text().splitlines()) > 3:
            break
        time.sleep(0.02)
    process.kill()
    process.wait()
    before = journal.read_text().splitlines()[1:]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 0, finished.stderr
    lines = journal.read_text().splitlines()[1:]
    assert lines[: len(before) - 1] == before[:-1]
    asked = [json.loads(line)["problem"] for line in lines]
    assert sorted(asked) == sorted(row["id"] for row in ROWS)  # each once
    assert len(out.read_text().splitlines()) == len(ROWS)


def test_an_evaluation(server, tmp_path):
    url, model = server
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:4]))
    settings = {
        "evaluation.engine": "endpoint",
        "evaluation.endpoint": url,
        "evaluation.temperature": 0.7,
        "evaluation.concurrency": 2,
        "reward.kind": "number",
        "rollout.max_tokens": 48,
    }
    config = load_config(None, settings)
    result = evaluate(model, [f"{tmp_path}/mine.jsonl@2"], config, output=tmp_path / "eval").results["mine"]
    assert [len(record["samples"]) for record in result.generations] == [2] * 4
    assert all(sample["tokens"] > 0 for record in result.generations for sample in record["samples"])
