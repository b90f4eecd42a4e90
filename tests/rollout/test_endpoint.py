import threading
import time

import pytest
from tests.fake_server import Raw, chat, serving

from luffy.errors import ConfigError, ModelError
from luffy.rollout import Sampling, endpoint
from luffy.rollout.endpoint import EndpointClient, Question, UnansweredError

SAMPLING = Sampling(max_tokens=9, temperature=0.5, top_p=0.9)
MESSAGES = ({"role": "user", "content": "What is 1 + 1?"},)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_a_question_and_its_reply():
    with serving(lambda request, number: chat("2", tokens=3)) as server, EndpointClient(server.url, "m") as client:
        reply = client.ask(Question(MESSAGES, seed=4), SAMPLING)
    assert (reply.text, reply.finished, reply.tokens, reply.prompt_tokens) == ("2", True, 3, 7)
    request = server.requests[0]
    assert request["path"] == "/v1/chat/completions"
    assert {key: request[key] for key in ("model", "max_tokens", "temperature", "top_p", "seed")} == {
        "model": "m",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 4,
    }
    assert request["messages"] == [dict(MESSAGES[0])]


def test_text_goes_to_completions():
    reply = {"choices": [{"text": " 2", "finish_reason": "length"}]}
    with serving(lambda request, number: reply) as server, EndpointClient(server.url, "m") as client:
        answer = client.ask(Question("1 + 1 =", seed=0), SAMPLING)
    assert server.requests[0]["path"] == "/v1/completions"
    assert (answer.text, answer.finished, answer.tokens) == (" 2", False, 0)


def test_a_thought_kept_apart_comes_first():
    reply = chat("It is 2.", reasoning_content="1 and 1 is 2")
    with serving(lambda request, number: reply) as server, EndpointClient(server.url, "m") as client:
        assert client.ask(Question(MESSAGES, 0), SAMPLING).text == "<think>\n1 and 1 is 2\n</think>\n\nIt is 2."


@pytest.mark.parametrize(
    "trouble",
    [
        Raw(500, b"{}"),
        Raw(429, b'{"error": {"message": "slow down"}}', {"Retry-After": "0.01"}),
        Raw(429, b"", {"Retry-After": "Wed, 21 Oct 2099 07:28:00 GMT"}),
        Raw(200, b"<html>gateway</html>"),
        Raw(200, b"[1, 2]"),
        Raw(200, b'{"choices": []}'),
        Raw(200, b'{"choices": [{"message": {"content": null}, "finish_reason": "stop"}]}'),
        Raw(200, b'{"choices": [{"message": {"content": "x"}, "finish_reason": "content_filter"}]}'),
        Raw(200, b"[" * 100_000),
        Raw(hang_up=True),
        Raw(200, b"{}", stall=1.0),
    ],
    ids=lambda raw: f"{raw.status}-{raw.body[:12]!r}-{raw.stall}-{raw.hang_up}",
)
def test_trouble_is_tried_again(trouble):
    answers = [trouble, trouble, chat("2")]
    with (
        serving(lambda request, number: answers[min(number, 2)]) as server,
        EndpointClient(server.url, "m", timeout=0.3) as client,
    ):
        assert client.ask(Question(MESSAGES, 0), SAMPLING).text == "2"
        assert len(server.requests) == 3


def test_a_server_that_never_answers_properly():
    with (
        serving(lambda request, number: Raw(503, b"warming up")) as server,
        EndpointClient(server.url, "m", tries=3) as client,
        pytest.raises(UnansweredError, match="in 3 tries; the last: status 503: warming up"),
    ):
        client.ask(Question(MESSAGES, 0), SAMPLING)
    assert len(server.requests) == 3


def test_no_server_at_all():
    with (
        EndpointClient("http://127.0.0.1:9/v1", "m", tries=2) as client,
        pytest.raises(UnansweredError, match="no conn"),
    ):
        client.ask(Question(MESSAGES, 0), SAMPLING)


@pytest.mark.parametrize(
    ("status", "match"),
    [(401, "OPENAI_API_KEY is not set"), (404, "is 'm' served there"), (400, "too long"), (302, "status 302")],
)
def test_what_no_try_can_mend(status, match):
    body = b'{"error": {"message": "prompt too long"}}'
    with (
        serving(lambda request, number: Raw(status, body, {"Location": "http://elsewhere.invalid/"})) as server,
        EndpointClient(server.url, "m") as client,
        pytest.raises(ModelError, match=match),
    ):
        list(client.ask_all([Question(MESSAGES, n) for n in range(50)], SAMPLING))
    assert len(server.requests) < 50


def test_the_key_goes_to_the_server_and_into_no_message(monkeypatch):
    monkeypatch.setenv("MY_KEY", "sk-secret")
    with (
        serving(lambda request, number: Raw(401, b"who?")) as server,
        EndpointClient(server.url, "m", key_variable="MY_KEY") as client,
        pytest.raises(ModelError, match="MY_KEY is refused") as error,
    ):
        client.ask(Question(MESSAGES, 0), SAMPLING)
    assert server.headers[0]["Authorization"] == "Bearer sk-secret"
    assert "sk-secret" not in str(error.value)


@pytest.mark.parametrize("url", ["localhost:8000/v1", "ftp://x/v1", ""])
def test_an_address_that_is_none(url):
    with pytest.raises(ConfigError, match="expected an address such as http://"):
        EndpointClient(url, "m")


def test_many_at_a_time_but_not_more_and_each_once():
    gate = threading.Barrier(4)

    def respond(request, number):
        gate.wait(30)  # for three others: fewer at a time would never get on
        time.sleep(0.05)  # for a fifth, if it should come
        return chat(str(request["seed"]))

    with serving(respond) as server, EndpointClient(server.url, "m", concurrency=4) as client:
        replies = dict(client.ask_all((Question(MESSAGES, n) for n in range(20)), SAMPLING))
    assert {index: reply.text for index, reply in replies.items()} == {n: str(n) for n in range(20)}
    assert server.most_at_a_time == 4
    assert sorted(request["seed"] for request in server.requests) == list(range(20))


def test_one_unanswered_question_does_not_end_the_others():
    def respond(request, number):
        return Raw(500) if request["seed"] == 2 else chat("ok")

    with serving(respond) as server, EndpointClient(server.url, "m", tries=2) as client:
        replies = dict(client.ask_all([Question(MESSAGES, n) for n in range(5)], SAMPLING))
    assert isinstance(replies[2], UnansweredError)
    assert all(replies[n].text == "ok" for n in (0, 1, 3, 4))


def test_who_stops_listening_waits_for_nobody():
    with (
        serving(lambda request, number: chat("ok") if number == 0 else Raw(stall=30)) as server,
        EndpointClient(server.url, "m", concurrency=3) as client,
    ):
        finished = threading.Event()

        def listen():
            for _ in client.ask_all([Question(MESSAGES, n) for n in range(9)], SAMPLING):
                break
            finished.set()

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        assert finished.wait(10)


def test_log_probs_in_both_forms():
    of_chat = chat("ab")
    of_chat["choices"][0]["logprobs"] = {"content": [{"token": "a", "logprob": -1.0}, {"token": "b", "logprob": -0.5}]}
    of_text = {"choices": [{"text": "ab", "logprobs": {"tokens": ["a", "b"], "token_logprobs": [-1.0, -0.5]}}]}
    for prompt, reply in ((MESSAGES, of_chat), ("x", of_text)):
        with serving(lambda request, number, reply=reply: reply) as server:
            client = EndpointClient(server.url, "m", logprobs=True)
            answer = client.ask(Question(prompt, 0), SAMPLING)
        assert (answer.token_texts, answer.logprobs) == (("a", "b"), (-1.0, -0.5))
        assert server.requests[0]["logprobs"] in (True, 0)
