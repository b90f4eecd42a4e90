"""A server that speaks the OpenAI protocol over real HTTP and misbehaves as it is told to."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Respond = Callable[[dict[str, Any], int], Any]  # (request, its number from 0) -> reply


@dataclass
class Raw:
    """An answer byte for byte."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    stall: float = 0.0  # seconds before anything is sent
    hang_up: bool = False


def chat(text: str, *, finish: str = "stop", tokens: int = 5, **message: Any) -> dict[str, Any]:
    """A proper reply."""
    return {
        "choices": [{"message": {"role": "assistant", "content": text, **message}, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": tokens},
    }


@dataclass
class FakeServer:
    """What arrived, and where."""

    url: str
    requests: list[dict[str, Any]]
    headers: list[dict[str, str]]
    most_at_a_time: int = 0


@contextmanager
def serving(respond: Respond) -> Iterator[FakeServer]:
    """Serve on a free port of this machine."""
    lock = threading.Lock()
    state = FakeServer("", [], [])
    active = 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal active
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(state.requests)
                state.requests.append(body | {"path": self.path})
                state.headers.append(dict(self.headers))
                active += 1
                state.most_at_a_time = max(state.most_at_a_time, active)
            try:
                answer = respond(body | {"path": self.path}, number)
                self._send(answer if isinstance(answer, Raw) else Raw(body=json.dumps(answer).encode()))
            finally:
                with lock:
                    active -= 1

        def _send(self, raw: Raw) -> None:
            time.sleep(raw.stall)
            if raw.hang_up:
                self.close_connection = True
                self.connection.close()
                return
            try:
                self.send_response(raw.status)
                for name, value in raw.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(raw.body)))
                self.end_headers()
                self.wfile.write(raw.body)
            except OSError:
                pass  # the client did not wait

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are part of the tests
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
