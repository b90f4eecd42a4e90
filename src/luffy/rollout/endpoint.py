"""A client for any server that speaks the OpenAI protocol: answers with retries, many at a time.

    client = EndpointClient("http://localhost:8000/v1", "Qwen/Qwen2.5-7B-Instruct")
    for index, reply in client.ask_all([Question(messages, seed=0), ...], sampling): ...

One request a sample, so that what fails is asked again by itself. The key comes from the environment and appears in no
message, file or log. Chat messages go to /chat/completions, text to /completions.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Self

import httpx2

from luffy.errors import ConfigError, ModelError, RunError
from luffy.files import parse_json
from luffy.formats import CLOSING, OPENING
from luffy.redaction import MASK, without_secrets
from luffy.rollout.engine import Sampling
from luffy.types import Prompt

KEY_VARIABLE = "OPENAI_API_KEY"
TRY_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds before the second try; it doubles from one try to the next
SHOWN_BODY = 200  # characters of what a server says


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt to be answered once."""

    prompt: Prompt  # chat messages, or text that is continued
    seed: int


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server answered."""

    text: str  # a thought that the server hands over by itself comes first, in <think> and </think>
    finished: bool  # False: cut off by the length limit
    tokens: int  # of the completion, as the server counts; 0 where it does not
    prompt_tokens: int
    token_texts: tuple[str, ...] | None = None  # where log-probs were asked for and given
    logprobs: tuple[float, ...] | None = None


class UnansweredError(RunError):
    """A question that got no usable answer in all tries."""


class _TransientError(Exception):
    """What is worth another try: why, and how long the server asks to wait."""

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


class EndpointClient:
    """Asks a server; a context manager."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_variable: str = KEY_VARIABLE,
        concurrency: int = 32,
        timeout: float = 600.0,
        tries: int = 6,
        logprobs: bool = False,
    ) -> None:
        """url: up to and with /v1. model: the server's name of it. key_variable: of the environment; none set: no key.

        concurrency: requests at a time. timeout: seconds without a byte from the server. logprobs: ask for them.
        Raises ConfigError for an address that is none.
        """
        self.url, self.model, self.key_variable = url.rstrip("/"), model, key_variable
        self.concurrency, self.tries, self.logprobs = concurrency, tries, logprobs
        if "@" in url or "?" in url:  # said without the address, which holds a secret
            raise ConfigError(
                "endpoint: expected an address without user, password or `?...`, such as http://localhost:8000/v1; "
                f"the key belongs into the environment variable {key_variable}."
            )
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"endpoint {url!r}: expected an address such as http://localhost:8000/v1")
        self._key = key = os.environ.get(key_variable, "")
        try:
            self._http = httpx2.Client(
                headers={"Authorization": f"Bearer {key}"} if key else {},
                timeout=httpx2.Timeout(timeout, connect=min(timeout, 10.0)),
                limits=httpx2.Limits(max_connections=concurrency),
                follow_redirects=False,  # the key goes to nobody else
            )
        except (UnicodeEncodeError, httpx2.InvalidURL):
            raise ConfigError(f"the key in ${key_variable} has characters that no key has.") from None
        self._stop = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End pauses and connections."""
        self._stop.set()
        self._http.close()

    def ask_all(
        self, questions: Iterable[Question], sampling: Sampling
    ) -> Iterator[tuple[int, Reply | UnansweredError]]:
        """(index of the question, its reply), as they come in; the seed of each question replaces that of `sampling`.

        A question without a usable answer in all tries gives an `UnansweredError`. Raises ModelError or ConfigError at
        once for what no try can mend: a wrong key, address or model. Nothing is asked ahead of what is waited for.
        """
        tasks: SimpleQueue[tuple[int, Question] | None] = SimpleQueue()
        answers: SimpleQueue[tuple[int, Reply | Exception]] = SimpleQueue()
        threads = 0
        left = iter(enumerate(questions))
        waiting = 0
        try:
            while True:
                while waiting < self.concurrency and (item := next(left, None)):
                    tasks.put(item)
                    waiting += 1
                    if threads < waiting:  # daemons, so that nobody who stops listening waits for a stalling server
                        threading.Thread(target=self._work, args=(tasks, answers, sampling), daemon=True).start()
                        threads += 1
                if not waiting:
                    return
                index, answer = answers.get()
                waiting -= 1
                if isinstance(answer, Exception) and not isinstance(answer, UnansweredError):
                    raise answer
                yield index, answer
        finally:
            if waiting:
                self._stop.set()
            for _ in range(threads):
                tasks.put(None)

    def _work(
        self,
        tasks: SimpleQueue[tuple[int, Question] | None],
        answers: SimpleQueue[tuple[int, Reply | Exception]],
        sampling: Sampling,
    ) -> None:
        while (item := tasks.get()) is not None:
            try:
                answers.put((item[0], self.ask(item[1], sampling)))
            except Exception as error:
                answers.put((item[0], error))

    def ask(self, question: Question, sampling: Sampling) -> Reply:
        """One reply, with retries. Raises UnansweredError, and ModelError or ConfigError for what no try can mend."""
        why = ""
        for attempt in range(self.tries):
            if self._stop.is_set():
                raise UnansweredError("stopped.")
            try:
                return self._ask_once(question, sampling)
            except _TransientError as trouble:
                why = str(trouble)
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)
                if attempt + 1 < self.tries:
                    self._stop.wait(max(pause, min(trouble.pause or 0.0, LONGEST_PAUSE)))
        raise UnansweredError(f"{self.url}: no usable answer in {self.tries} tries; the last: {why}")

    def _ask_once(self, question: Question, sampling: Sampling) -> Reply:
        is_text = isinstance(question.prompt, str)
        path = "/completions" if is_text else "/chat/completions"
        try:
            response = self._http.post(self.url + path, json=self._body(question, sampling))
        except httpx2.TimeoutException:
            raise _TransientError("no answer in time") from None
        except httpx2.UnsupportedProtocol:
            raise ConfigError(f"endpoint {self.url!r}: expected an address such as http://localhost:8000/v1") from None
        except (httpx2.HTTPError, RuntimeError) as error:  # RuntimeError: the client was closed meanwhile
            raise _TransientError(f"no connection ({type(error).__name__})") from None
        self._check_status(response)
        try:
            return read_reply(response.json(), is_text=is_text)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError) as error:
            raise _TransientError(f"a nonsense answer ({type(error).__name__}): {self._shown(response)}") from None

    def _body(self, question: Question, sampling: Sampling) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": question.seed,
        }
        if isinstance(question.prompt, str):
            return body | {"prompt": question.prompt} | ({"logprobs": 0} if self.logprobs else {})
        messages = [dict(message) for message in question.prompt]
        return body | {"messages": messages} | ({"logprobs": True} if self.logprobs else {})

    def _check_status(self, response: httpx2.Response) -> None:
        status = response.status_code
        if status == 200:
            return
        if status in TRY_AGAIN:
            raise _TransientError(f"status {status}: {self._shown(response)}", _retry_after(response))
        said = f"{self.url} answered with status {status}: {self._shown(response)}"
        if status in (401, 403):
            have = "is refused" if os.environ.get(self.key_variable) else "is not set"
            raise ModelError(f"{said} The key in the environment variable {self.key_variable} {have}.")
        if status in (404, 405):
            raise ModelError(f"{said} Is the address right (it ends in /v1), and is {self.model!r} served there?")
        raise ModelError(f"{said} The request was for {self.model!r}.")

    def _shown(self, response: httpx2.Response) -> str:
        return shown(response, SHOWN_BODY, self._key)


def shown(response: httpx2.Response, longest: int, key: str = "") -> str:
    """The beginning of what a server says, on one line; some repeat the key they refuse."""
    try:
        error = parse_json(response.text)["error"]
        said = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, TypeError):
        said = response.text
    line = without_secrets(" ".join(said.split()))
    line = line.replace(key, MASK) if key else line
    return (line if len(line) <= longest else f"{line[:longest]}...") or "nothing"


def read_reply(body: Mapping[str, Any], *, is_text: bool) -> Reply:
    """The reply in a server's JSON. Raises ValueError, KeyError or TypeError where it is none."""
    choice = body["choices"][0]
    text = choice["text"] if is_text else _message_text(choice["message"])
    reason = choice.get("finish_reason")
    if not isinstance(text, str) or reason not in ("stop", "length", "eos", None):
        raise ValueError(f"finish_reason {reason!r}")
    usage = body.get("usage") or {}
    token_texts, logprobs = _logprobs(choice.get("logprobs"), is_text=is_text)
    return Reply(
        text=text,
        finished=reason != "length",
        tokens=int(usage.get("completion_tokens") or 0),
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        token_texts=token_texts,
        logprobs=logprobs,
    )


def _message_text(message: Mapping[str, Any]) -> Any:
    """What the assistant said, after its thought where the server keeps that apart."""
    thought = message.get("reasoning_content") or message.get("reasoning")
    content = message.get("content")
    if isinstance(thought, str) and thought.strip():
        return f"{OPENING}\n{thought.strip()}\n{CLOSING}\n\n{(content or '').strip()}"
    return content


def _logprobs(given: Any, *, is_text: bool) -> tuple[tuple[str, ...] | None, tuple[float, ...] | None]:
    if not given:
        return None, None
    if is_text:
        texts, values = given.get("tokens"), given.get("token_logprobs")
    else:
        content = given.get("content") or []
        texts, values = [one["token"] for one in content], [one["logprob"] for one in content]
    if not texts or not values or len(texts) != len(values):
        return None, None
    return tuple(map(str, texts)), tuple(map(float, values))


def _retry_after(response: httpx2.Response) -> float | None:
    try:
        return max(0.0, float(response.headers.get("retry-after", "")))
    except ValueError:
        return None  # also for a date, which no such server sends
