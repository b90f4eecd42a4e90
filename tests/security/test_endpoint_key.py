"""A server that repeats the key it was given: in what it refuses, in nonsense, and in what is kept of it."""

import sys

import pytest

from fake_server import Raw, chat, serving
from luffy import ConfigError, cli
from luffy.cli import console
from luffy.errors import ModelError
from luffy.rollout import Sampling
from luffy.rollout.endpoint import EndpointClient, Question, UnansweredError

KEY = "sk-FAKE-short"  # shorter than what is masked everywhere: the client knows its own key
QUESTION = Question(({"role": "user", "content": "2+2"},), 0)


@pytest.mark.parametrize("status", [200, 400, 401, 404, 500])
def test_a_key_that_the_server_repeats_is_masked(monkeypatch, status):
    monkeypatch.setenv("TEACHER", KEY)
    body = f'{{"error": {{"message": "wrong key {KEY}"}}}}'.encode()
    with (
        serving(lambda request, number: Raw(status, body)) as server,
        EndpointClient(server.url, "m", key_variable="TEACHER", tries=1) as client,
        pytest.raises((ModelError, UnansweredError)) as error,
    ):
        client.ask(QUESTION, Sampling(max_tokens=4))
    assert server.headers[0]["Authorization"] == f"Bearer {KEY}"
    assert "wrong key ***" in str(error.value)
    assert KEY not in str(error.value)


@pytest.mark.parametrize("url", ["http://me:SECRET@localhost/v1", "http://localhost/v1?key=SECRET"])
def test_an_address_with_a_secret_is_refused_without_being_repeated(url):
    with pytest.raises(ConfigError, match="the key belongs into the environment variable") as error:
        EndpointClient(url, "m")
    assert "SECRET" not in str(error.value)


def test_a_collection_keeps_no_key(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(console.results, "width", 200)
    monkeypatch.setattr(console.messages, "width", 200)
    (tmp_path / "q.jsonl").write_text('{"prompt": "2+2", "answer": "4"}\n')
    with serving(lambda request, number: chat("#### 4")) as server:
        arguments = ["--endpoint", server.url, "--model", "m", "--out", f"{tmp_path}/out.jsonl", "reward.kind=number"]
        monkeypatch.setattr(
            sys, "argv", ["luffy", "data", "collect", f"{tmp_path}/q.jsonl", *arguments, "reward.workers=0"]
        )
        with pytest.raises(SystemExit):
            cli.main()
    written = [path for path in tmp_path.iterdir() if path.is_file()]
    assert {path.name for path in written} >= {"out.jsonl", "out.jsonl.journal"}
    printed = capsys.readouterr()
    assert not any(KEY.encode() in path.read_bytes() for path in written)
    assert KEY not in printed.out + printed.err
