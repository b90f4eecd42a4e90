"""The page of a run while it trains, served on this machine only.

Two addresses: `/` is the page, `/version` says which state the run's files are in. Nothing else is served, no path is
ever looked up on disk, and only requests that name this machine as host are answered, so that another web page cannot
read the run through a name of its own.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jinja2

from luffy.errors import LuffyError, RunError
from luffy.report.page import page_of

HOST = "127.0.0.1"
WATCHED = ("config.yaml", "summary.json", "metrics.jsonl", "evaluations.jsonl")
WAITING = """<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="refresh" content="3">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'"><title>luffy report</title></head>
<body><main><h1>Nothing to show yet</h1><p>{{ reason }}</p>
<p>This page looks again every three seconds.</p></main></body>
</html>"""


def version_of(folders: Sequence[Path]) -> str:
    """A digest that changes when any file changes that the page is made of."""
    runs = [path for folder in folders for path in (folder, *sorted(folder.glob("*/seed-*")))]
    files = [run / name for run in runs for name in WATCHED]
    return hashlib.sha256(json.dumps([_state(path) for path in files]).encode()).hexdigest()[:16]


def _state(path: Path) -> tuple[str, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path), found.st_size, found.st_mtime_ns


@dataclass(slots=True)
class LivePage:
    """The newest page, made anew when it is asked for and the files have changed since."""

    folders: Sequence[Path]
    price: float | None = None  # dollars a device and hour
    _version: str = ""
    _content: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def content(self) -> bytes:
        """The HTML of now; of a run that has written nothing yet, or is just writing, a page that asks again."""
        with self._lock:
            version = version_of(self.folders)
            if version != self._version:
                try:
                    self._content = page_of(self.folders, price=self.price, live=version)
                    self._version = version
                except LuffyError as error:
                    return jinja2.Environment(autoescape=True).from_string(WAITING).render(reason=str(error)).encode()
            return self._content


@contextmanager
def live_server(folders: Sequence[Path], port: int = 0, *, price: float | None = None) -> Iterator[ThreadingHTTPServer]:
    """A server on 127.0.0.1 that answers while the block lasts; port 0 takes a free one. price: as of `write_report`.

    Raises RunError where the port is taken.
    """
    page = LivePage(list(folders), price)

    class Handler(BaseHTTPRequestHandler):
        """Answers `/` and `/version`, and nothing else."""

        server_version, sys_version = "luffy", ""

        def do_GET(self) -> None:
            """Answer one request."""
            names = {f"{HOST}:{server.server_port}", f"localhost:{server.server_port}"}
            if self.headers.get("Host") not in names:
                self.send_error(HTTPStatus.FORBIDDEN, "This page is for this machine only")
            elif self.path == "/":
                self._answer(page.content(), "text/html; charset=utf-8")
            elif self.path == "/version":
                self._answer(json.dumps({"version": version_of(page.folders)}).encode(), "application/json")
            else:
                self.send_error(HTTPStatus.NOT_FOUND)

        def _answer(self, content: bytes, kind: str) -> None:
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """A request is no news."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except (OSError, OverflowError) as error:
        raise RunError(f"port {port} of {HOST} cannot be used ({error}). Choose another --port.") from None
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="luffy-live", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
