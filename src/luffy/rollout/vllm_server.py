"""Generation with a vLLM server in another process, on this machine or another: one of the run's own, or a given one.

Decisions, and why:
- Prompts and completions travel as tokens (`/inference/v1/generate`), with the very settings that vLLM gets in this
  process: the same seed draws the same completions.
- New weights go through vLLM's public weight-transfer interface over HTTP, with a receiver of ours
  (rollout/vllm_receiver.py): safetensors files in buckets, in a folder that both sides see.
- Each set of weights has a name that no other run gives (`weight_version`). It is compared before and after each batch,
  and after each trouble: a server that was started anew gets the weights again, those of another run stop this one.
- Every request has a time-out. What fails is asked again with growing pauses for `rollout.vllm.patience` seconds; then
  the run leaves a checkpoint and stops.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luffy.config import Config
from luffy.errors import ConfigError, EngineLostError, LuffyError, ModelError, RunError
from luffy.policy import LoadedModel, model_folder
from luffy.rollout.engine import Sampling
from luffy.rollout.vllm_buckets import Buckets
from luffy.rollout.vllm_control import CONNECTIONS, ServerTroubleError, VllmServer
from luffy.rollout.vllm_launch import LaunchedServer, serve_command
from luffy.rollout.vllm_plugin import BACKEND
from luffy.rollout.vllm_settings import (
    completion,
    distinct,
    import_vllm,
    knows_logprobs,
    model_settings,
    named_weights,
    request_settings,
)
from luffy.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)


class VllmServerEngine:
    """A `StreamingEngine` on a vLLM server, with weights of its own: it can generate while the policy is updated."""

    def __init__(self, config: Config, loaded: LoadedModel) -> None:
        """Start or find the server, and give it the policy's weights.

        Raises ConfigError or ModelError for a server that this run cannot use, RunError for one that does not answer.
        """
        wanted = config.rollout.vllm
        settings = model_settings(config, loaded)
        model = model_folder(config.model)
        self.version = -1  # updates of the weights so far, the first one left out
        self._eos_ids = list(loaded.eos_ids)
        self._logprobs_mode = str(settings["logprobs_mode"])
        self._most_at_once = wanted.max_sequences
        self._run = secrets.token_hex(8)
        self._lock = threading.Lock()  # weights never change under a completion
        self._in_doubt = threading.Event()  # set: the server may be another one by now, without this run's weights
        self._ensuring = threading.Lock()
        self._lost: EngineLostError | None = None
        self._closed = False
        self._launched = None if wanted.server else _launch(config, model, settings)
        self._server = VllmServer(wanted.server or self._launched_url(), wanted.patience)
        self._buckets: Buckets | None = None
        try:
            if self._launched:
                self._server.is_gone = self._launched.gone
            check_server(self._server, settings, serve_command(model, settings))
            self._buckets = Buckets(wanted.exchange, wanted.bucket_mib, settings["dtype"])
            self.update_weights(loaded.model)
            self._refuse_unusable()
        except BaseException:
            self.close()
            raise

    def generate(self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Draw n completions for each prompt; see `Engine.generate`.

        A seed is kept with one version of vLLM on one kind of device, as vLLM promises it. Raises RunError where the
        server fails for good or has other weights, and ModelError for what it refuses, such as a prompt too long.
        """
        groups = dict(self.stream(prompt_ids, n, sampling))
        return [groups[index] for index in range(len(prompt_ids))]

    def stream(
        self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling
    ) -> Iterator[tuple[int, list[Completion]]]:
        """Hand over the completions of each prompt when the last of them has ended; see `StreamingEngine.stream`."""
        if not prompt_ids:
            return
        with self._lock:
            self._refuse_unusable()
            self._in_doubt.set()
            pool = ThreadPoolExecutor(min(CONNECTIONS, len(prompt_ids)))
            try:
                tasks = {
                    pool.submit(self._group, list(ids), n, sampling, place): place
                    for place, ids in enumerate(prompt_ids)
                }
                for task in as_completed(tasks):
                    yield tasks[task], task.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
            if self._server.persist("asking vLLM's server for its weights' version", self._served) != self._name:
                raise EngineLostError("vLLM's server got other weights while it generated for this run.")

    def update_weights(self, policy: PreTrainedModel) -> None:
        """Write the policy's weights into buckets and have the server load them.

        Raises RunError where they cannot be written. Where the server fails, the next batch raises EngineLostError in
        place of this call: by then the step is recorded, and a checkpoint can be left.
        """
        with self._lock:
            self._refuse_unusable()
            assert self._buckets is not None
            self._buckets.write(named_weights(policy))
            self.version += 1
            try:
                self._server.persist("the update of the weights of vLLM's server", self._push)
            except EngineLostError as error:
                self._lost = error

    def close(self) -> None:
        """End the server if it is the run's own, and remove the buckets; a closed engine stays closed."""
        self._closed = True
        self._server.close()
        if self._launched:
            self._launched.close()
        if self._buckets:
            self._buckets.remove()

    @property
    def _name(self) -> str:
        """Of the newest weights; no other run gives it."""
        return f"{self._run}-{self.version}"

    def _launched_url(self) -> str:
        assert self._launched is not None
        return self._launched.url

    def _refuse_unusable(self) -> None:
        if self._closed:
            raise RunError("this vLLM engine is closed.")
        if self._lost:
            raise self._lost

    def _served(self) -> str:
        """The name of the weights that the server has now."""
        return str(self._server.get("/weight_info")["weight_version"])

    def _ensure_weights(self) -> None:
        """Give the newest weights to a server that lost them. Raises RunError where it has those of another run."""
        with self._ensuring:
            if not self._in_doubt.is_set():
                return
            served = self._served()
            if served not in (self._name, UNNAMED) and not served.startswith(self._run):
                raise EngineLostError(
                    f"vLLM's server has the weights of another run ({served}): each run needs a server of its own."
                )
            if served != self._name:
                logger.warning("vLLM's server has lost this run's weights; they are sent again.")
                self._push()
            self._in_doubt.clear()

    def _push(self) -> None:
        """Have the server load the buckets, whatever it was left with before."""
        assert self._buckets is not None
        if not self._buckets.files:
            raise RunError("an update of the weights was not written whole, so the server cannot get them.")
        self._server.post("/init_weight_transfer_engine", {"init_info": {"folder": str(self._buckets.folder)}})
        self._server.post("/update_weight_version", {"new_version": f"{self._run}-incomplete"})
        self._server.post("/pause?mode=abort&clear_cache=true")  # which forgets what is kept of prompts
        self._begin_update()
        *others, last = self._buckets.files
        for file in others:
            self._server.post("/update_weights", {"update_info": {"file": file}})
        self._server.post("/update_weights", {"update_info": {"file": last, "last": True}})
        self._server.post("/finish_weight_update", {"weight_version": self._name})
        self._server.post("/resume")

    def _begin_update(self) -> None:
        try:
            self._server.post("/start_weight_update")
        except ServerTroubleError as trouble:
            if not trouble.failed:
                raise
            self._server.post("/finish_weight_update")  # of a run that was killed in the middle of an update
            self._server.post("/start_weight_update")

    def _group(self, ids: list[int], n: int, sampling: Sampling, place: int) -> list[Completion]:
        """The completions of one prompt, in as many requests as the server's limit takes."""
        drawn = distinct(n, sampling)
        known = knows_logprobs(self._logprobs_mode, sampling)
        group: list[Completion] = []
        while len(group) < drawn:
            count = min(drawn - len(group), self._most_at_once)
            settings = request_settings(count, sampling, place, self._eos_ids)
            settings["seed"] += len(group)  # vLLM adds the number of the completion to it
            body = {"token_ids": ids, "sampling_params": settings}
            group += self._server.persist("generating on vLLM's server", partial(self._draw, body, known))
        return group * (n // drawn)

    def _draw(self, body: dict[str, Any], known: bool) -> list[Completion]:
        if self._in_doubt.is_set():
            self._ensure_weights()
        try:
            choices = self._server.post(GENERATE, body)["choices"]
            return [_completion(one, known=known) for one in sorted(choices, key=lambda one: int(one["index"]))]
        except ServerTroubleError:
            self._in_doubt.set()
            raise
        except LuffyError:
            raise  # one of them is a ValueError, too
        except (KeyError, TypeError, ValueError) as error:
            self._in_doubt.set()
            raise ServerTroubleError(f"a nonsense answer ({type(error).__name__}: {error})") from None


UNNAMED = "default"  # vLLM's name for the weights that a server starts with
STARTING_PAUSE = 2.0  # seconds between two looks at a server that may be starting
GENERATE = "/inference/v1/generate"
NEEDED = (GENERATE, "/weight_info", "/start_weight_update", "/pause", "/server_info")


def check_server(server: VllmServer, settings: dict[str, Any], command: str) -> None:
    """Whether a server can serve this run. Raises ConfigError or ModelError, with the command of one that can."""
    remedy = f"Start one with: {command}"

    def ask(path: str) -> Any:
        return server.persist("reaching vLLM's server", lambda: server.get(path), longest=STARTING_PAUSE)

    try:
        version = ask("/version")["version"]
    except (ModelError, KeyError, TypeError):
        raise ModelError(f"{server.url} is no vLLM server: it does not say its version. {remedy}") from None
    try:
        paths = ask("/openapi.json")["paths"]
        if missing := [path for path in NEEDED if path not in paths]:
            raise ConfigError(f"{server.url}: vLLM {version} there was started without {missing[0]}. {remedy}")
        found = ask("/server_info?config_format=json")["vllm_config"]
        backend = (found["weight_transfer_config"] or {}).get("backend")
        mode, longest = found["model_config"]["logprobs_mode"], int(found["model_config"]["max_model_len"])
    except (ModelError, KeyError, TypeError):
        raise ModelError(f"{server.url}: vLLM {version} there does not say how it was started. {remedy}") from None
    if backend != BACKEND:
        raise ConfigError(f"{server.url}: vLLM there takes weights through {backend}, not {BACKEND}. {remedy}")
    if mode != settings["logprobs_mode"]:
        raise ConfigError(f"{server.url}: vLLM there gives {mode}, not {settings['logprobs_mode']}. {remedy}")
    if longest < settings["max_model_len"]:
        raise ConfigError(
            f"{server.url}: vLLM there takes {longest} tokens of prompt and completion, this run needs "
            f"{settings['max_model_len']}. {remedy}"
        )


def _launch(config: Config, model: str, settings: dict[str, Any]) -> LaunchedServer:
    import_vllm("rollout.engine=vllm_server")
    folder = Path(config.output)
    folder.mkdir(parents=True, exist_ok=True)
    return LaunchedServer(model, settings, folder / "vllm.log")


def _completion(choice: dict[str, Any], *, known: bool) -> Completion:
    ids = choice["token_ids"]
    logprobs = (float(one["logprob"]) for one in choice["logprobs"]["content"])
    return completion(ids, logprobs, choice["finish_reason"], known=known)
