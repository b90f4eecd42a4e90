"""What we say to vLLM's server over HTTP, with a time-out for each word of it."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import httpx2

from luffy.errors import ConfigError, EngineLostError, ModelError
from luffy.rollout.endpoint import shown
from luffy.rollout.vllm_settings import SHOWN

logger = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0  # seconds before the second try; it doubles from one try to the next
QUICK = 30.0  # seconds for what takes a server no work
MOST_FAILURES = 3  # in a row, of a server that is there
CONNECTIONS = 64
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504)

Answer = TypeVar("Answer")


class ServerTroubleError(Exception):
    """What may be over at the next try: no connection, no answer in time, a server that failed."""

    def __init__(self, why: str, *, failed: bool = False) -> None:
        super().__init__(why)
        self.failed = failed  # the server is there and failed at what it was asked


class VllmServer:
    """A server of vLLM's, by its address."""

    def __init__(self, url: str, patience: float) -> None:
        """url: without /v1. patience: seconds for an answer, and for all tries. Raises ConfigError for no address."""
        self.url = url.rstrip("/").removesuffix("/v1")
        if not self.url.startswith(("http://", "https://")) or "@" in url or "?" in url:
            raise ConfigError(
                "rollout.vllm.server: expected the address of a vLLM server, such as http://localhost:8000, without "
                "user, password or `?...`."
            )
        self.patience = patience
        self.is_gone: Callable[[], str | None] = lambda: None  # why it will never answer again, if so
        self._http = httpx2.Client(
            base_url=self.url,
            timeout=httpx2.Timeout(patience, connect=min(patience, 10.0)),
            limits=httpx2.Limits(max_connections=CONNECTIONS),
        )
        self._closed = threading.Event()
        self._said = -math.inf  # when the log last had a word of trouble

    def close(self) -> None:
        """End pauses and connections."""
        self._closed.set()
        self._http.close()

    def get(self, path: str) -> Any:
        """What it answers in JSON. Raises ServerTroubleError, or ModelError for what no try can mend."""
        return self._ask("GET", path, None, min(QUICK, self.patience))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """What it answers in JSON. Raises ServerTroubleError, or ModelError for what no try can mend."""
        return self._ask("POST", path, body, self.patience)

    def order(self, path: str, body: Mapping[str, Any]) -> None:
        """The same where nothing but the status counts: the answer may be no JSON."""
        self._ask("POST", path, body, self.patience, read=False)

    def persist(self, what: str, attempt: Callable[[], Answer], longest: float = LONGEST_PAUSE) -> Answer:
        """Try until it works, with growing pauses up to the longest, for as many seconds as the patience has.

        Raises EngineLostError where it never works or the server is gone, and at once what is no `ServerTroubleError`.
        """
        began, pause, failures = time.monotonic(), FIRST_PAUSE, 0
        while True:
            try:
                return attempt()
            except ServerTroubleError as trouble:
                failures = failures + 1 if trouble.failed else 0
                waited = time.monotonic() - began
                last = f"the last try: {trouble}."
                if gone := self.is_gone():
                    raise EngineLostError(f"{what} failed: {gone}") from None
                if failures >= MOST_FAILURES:
                    raise EngineLostError(f"{what} failed {failures} times; {last}") from None
                if self._closed.is_set() or waited + pause > self.patience:
                    for_long = f"for {waited:.0f} s (rollout.vllm.patience={self.patience:g})"
                    raise EngineLostError(f"{what} failed {for_long}; {last}") from None
                if longest == LONGEST_PAUSE and time.monotonic() > self._said + pause / 2:  # one of many that wait
                    self._said = time.monotonic()
                    logger.warning("%s failed, tried again in %.1f s: %s.", what, pause, trouble)
            self._closed.wait(pause * random.uniform(0.8, 1.0))
            pause = min(2 * pause, longest)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float, *, read: bool = True) -> Any:
        try:
            response = self._http.request(method, path, json=body, timeout=httpx2.Timeout(seconds, connect=10.0))
        except httpx2.TimeoutException:
            raise ServerTroubleError(f"{self.url}{path}: no answer within {seconds:g} s") from None
        except (httpx2.HTTPError, httpx2.InvalidURL, RuntimeError) as error:  # RuntimeError: closed meanwhile
            raise ServerTroubleError(f"{self.url}{path}: no connection ({type(error).__name__})") from None
        if response.status_code in TRY_AGAIN:
            said = f"{self.url}{path}: status {response.status_code}: {shown(response, SHOWN)}"
            raise ServerTroubleError(said, failed=response.status_code == 500)
        if response.status_code != 200:
            raise ModelError(f"{self.url}{path} answered with status {response.status_code}: {shown(response, SHOWN)}")
        try:
            return response.json() if response.content and read else None
        except ValueError:
            raise ModelError(
                f"{self.url}{path} answered with something that is not JSON: {shown(response, SHOWN)}"
            ) from None
