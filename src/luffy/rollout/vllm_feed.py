"""The weights of a vLLM server: sent by one process, known by their name to all that generate with it.

Each set of weights has a name that no other run gives (`weight_version`). Whoever generates compares it before and
after each batch, and after each trouble. A server that was started anew gets the newest set again, from whichever
process sees it first: the files are still there, and whoever knows their names can tell the server to read them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass

from luffy.errors import EngineLostError, ModelError, RunError
from luffy.rollout.vllm_control import ServerTroubleError, VllmServer

logger = logging.getLogger(__name__)

UNNAMED = "default"  # vLLM's name for the weights that a server starts with

Turn = Callable[[], AbstractContextManager[bool]]  # says whether no other process of the run is inside meanwhile


@dataclass(frozen=True, slots=True)
class Sent:
    """A whole set of weights, where the server reads it."""

    run: str  # begins the names of all sets of this run
    version: int
    folder: str
    files: tuple[str, ...]  # none: it was not written whole
    adapter: str | None = None  # folder of one that vLLM adds to what the files hold; they are then the base's

    @property
    def name(self) -> str:
        """No other run gives it."""
        return f"{self.run}-{self.version}"

    @property
    def incomplete(self) -> str:
        """The name of weights of which some have come."""
        return f"{self.run}-incomplete"


class Feed:
    """Sees to it that the server has the newest weights of this run."""

    def __init__(self, server: VllmServer, turn: Turn = lambda: nullcontext(True)) -> None:
        """turn: for one of several processes that share the server; alone, it is always this one's."""
        self.sent: Sent | None = None  # the newest
        self._server, self._turn = server, turn
        self._adapter: str | None = None  # name of the one that the server got last from here
        self._doubt = threading.Event()  # set: the server may be another one by now, without this run's weights
        self._ensuring = threading.Lock()

    def push(self) -> None:
        """Have the server load the newest weights, whatever it was left with before. Raises ServerTroubleError."""
        sent = self._newest()
        if not sent.files:
            raise RunError("an update of the weights was not written whole, so the server cannot get them.")
        if sent.adapter is None:
            self._push_files(sent, sent.name)
            return
        served = self._served()
        if not served.startswith(f"{sent.run}-") or served == sent.incomplete:
            self._push_files(sent, f"{sent.run}-base")
        self._push_adapter(sent, sent.adapter)

    def _push_files(self, sent: Sent, name: str) -> None:
        self._server.post("/init_weight_transfer_engine", {"init_info": {"folder": sent.folder}})
        self._server.post("/update_weight_version", {"new_version": sent.incomplete})
        self._server.post("/pause?mode=abort&clear_cache=true")  # which forgets what is kept of prompts
        self._begin_update()
        *others, last = sent.files
        for file in others:
            self._server.post("/update_weights", {"update_info": {"file": file}})
        self._server.post("/update_weights", {"update_info": {"file": last, "last": True}})
        self._server.post("/finish_weight_update", {"weight_version": name})
        self._server.post("/resume")

    def _push_adapter(self, sent: Sent, folder: str) -> None:
        load = {"lora_name": sent.name, "lora_path": folder, "load_inplace": True}  # it may be there after a broken try
        self._server.order("/v1/load_lora_adapter", load)
        self._server.post("/update_weight_version", {"new_version": sent.name})
        before, self._adapter = self._adapter, sent.name
        if before not in (None, sent.name):
            with suppress(ServerTroubleError, ModelError):  # a server that was started anew does not know it
                self._server.order("/v1/unload_lora_adapter", {"lora_name": before})

    def doubt(self) -> None:
        """From now on the server may have lost the weights: they are looked after before it is asked for anything."""
        self._doubt.set()

    def ensure(self) -> None:
        """Give the newest weights to a server that lost them, if there is doubt.

        Raises ServerTroubleError where another process is about it, EngineLostError for the weights of another run.
        """
        if not self._doubt.is_set():
            return
        with self._ensuring:
            if self._doubt.is_set() and not self._is_fed():
                with self._turn() as ours:
                    if not ours:
                        raise ServerTroubleError("another process of this run is giving the server its weights")
                    if not self._is_fed():
                        logger.warning("vLLM's server has lost this run's weights; they are sent again.")
                        self.push()
            self._doubt.clear()

    def _newest(self) -> Sent:
        assert self.sent is not None
        return self.sent

    def _is_fed(self) -> bool:
        """Whether the server has the newest weights. Raises EngineLostError where it has those of another run."""
        sent = self._newest()
        served = self._served()
        if served not in (sent.name, UNNAMED) and not served.startswith(sent.run):
            raise EngineLostError(
                f"vLLM's server has the weights of another run ({served}): each run needs a server of its own."
            )
        return served == sent.name

    def _served(self) -> str:
        """The name of the weights that the server has now."""
        return str(self._server.get("/weight_info")["weight_version"])

    def _begin_update(self) -> None:
        try:
            self._server.post("/start_weight_update")
        except ServerTroubleError as trouble:
            if not trouble.failed:
                raise
            self._server.post("/finish_weight_update")  # of a run that was killed in the middle of an update
            self._server.post("/start_weight_update")
