"""A vLLM server of a run's own: started, waited for, and ended with the run, however that ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luffy.errors import ModelError
from luffy.rollout.vllm_plugin import BACKEND

GRACE = 20.0  # seconds for a server that is asked to end


class LaunchedServer:
    """A child process that serves a model on this machine alone."""

    def __init__(self, model: str, settings: Mapping[str, Any], log: Path, port: int | None = None) -> None:
        """Start it; it takes a while until it answers.

        log: what it writes. port: None: a free one. Raises ModelError where it cannot be started.
        """
        self.log = log
        port = port or _free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "luffy.rollout.vllm_child", str(os.getpid())]
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [*command, *serve_arguments(model, settings), "--host", "127.0.0.1", "--port", str(port)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_without_processes(os.environ) | ENVIRONMENT | _switches(settings),
                    start_new_session=True,  # so that Ctrl-C reaches the run alone, which still needs it
                )
        except OSError as error:
            raise ModelError(f"vLLM's server cannot be started ({error}).") from None

    def gone(self) -> str | None:
        """Why it will never answer again, if so."""
        status = self._process.poll()
        return None if status is None else _ended(f" with status {status}", self.log)

    def seen(self) -> SeenServer:
        """The server as the other processes of this machine see it."""
        return SeenServer(self._process.pid, self.log)

    def close(self) -> None:
        """End it and what it started."""
        for number, seconds in ((signal.SIGTERM, GRACE), (signal.SIGKILL, GRACE)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
                break
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # what it left behind


@dataclass(frozen=True, slots=True)
class SeenServer:
    """A server that another process of this machine has started."""

    process: int
    log: Path

    def gone(self) -> str | None:
        """Why it will never answer again, if so."""
        import psutil

        try:
            lives = psutil.Process(self.process).status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            lives = False
        return None if lives else _ended("", self.log)


def _ended(how: str, log: Path) -> str:
    return f"vLLM's server has ended{how}; the end of {log}: {_last_words(log)}"


def _last_words(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "it cannot be read."
    errors = [line for line in lines if " ERROR " in line]
    said = " ".join((errors or lines or ["nothing"])[-1].split()).rstrip(".")
    return f"{said}." if len(said) <= 300 else f"...{said[-300:]}."


ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "1",  # the opposite of what an engine in this process sets
    "VLLM_LOGGING_LEVEL": "INFO",  # into a file of its own
}


OF_PROCESSES = re.compile(r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE|NAME)|MASTER_(ADDR|PORT)|TORCHELASTIC_.*)")


def _without_processes(environment: Mapping[str, str]) -> dict[str, str]:
    """Without what a launcher tells a training process: the server is none of them, and torch would wait for others."""
    return {name: value for name, value in environment.items() if not OF_PROCESSES.fullmatch(name)}


def _switches(settings: Mapping[str, Any]) -> dict[str, str]:
    """Without which a server has no addresses for new weights, or for new adapters."""
    lora = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"} if settings.get("enable_lora") else {}
    return {"VLLM_SERVER_DEV_MODE": "1"} | lora


def serve_arguments(model: str, settings: Mapping[str, Any]) -> list[str]:
    """The arguments of `vllm serve` for a model and its settings, given by the names of vLLM's own arguments."""
    arguments = [model, "--enable-scale-out", "--weight-transfer-config", json.dumps({"backend": BACKEND})]
    for name, value in settings.items():
        option = "--" + name.replace("_", "-")
        if value is True:
            arguments.append(option)
        elif value is not None and value is not False and value != {}:
            arguments += [option, json.dumps(value) if isinstance(value, dict) else str(value)]
    return arguments


def serve_command(model: str, settings: Mapping[str, Any]) -> str:
    """The command that starts such a server by hand."""
    switches = " ".join(f"{name}={value}" for name, value in _switches(settings).items())
    return f"{switches} vllm serve {shlex.join(serve_arguments(model, settings))}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
