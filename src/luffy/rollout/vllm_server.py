"""Generation with a vLLM server in another process, on this machine or another: one of the run's own, or a given one.

Decisions, and why:
- Prompts and completions travel as tokens (`/inference/v1/generate`), with the very settings that vLLM gets in this
  process: the same seed draws the same completions.
- New weights go through vLLM's public weight-transfer interface over HTTP, with a receiver of ours
  (rollout/vllm_receiver.py): safetensors files in buckets, in a folder that both sides see.
- A server that was started anew gets the weights again; those of another run stop this one (rollout/vllm_feed.py).
- Several processes may generate with one server: the first one opens it and sends the weights, the others follow.
- Every request has a time-out. What fails is asked again with growing pauses for `rollout.vllm.patience` seconds; then
  the run leaves a checkpoint and stops.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luffy.config import Config
from luffy.errors import ConfigError, EngineLostError, LuffyError, ModelError, RunError
from luffy.policy import LoadedModel, model_folder
from luffy.policy.adapters import base_weights, merged_weights
from luffy.rollout.engine import Sampling
from luffy.rollout.vllm_buckets import Buckets
from luffy.rollout.vllm_control import CONNECTIONS, ServerTroubleError, VllmServer
from luffy.rollout.vllm_feed import Feed, Sent, Turn
from luffy.rollout.vllm_launch import LaunchedServer, SeenServer, serve_command
from luffy.rollout.vllm_plugin import BACKEND
from luffy.rollout.vllm_settings import (
    completion,
    distinct,
    exhausting,
    import_vllm,
    knows_logprobs,
    model_settings,
    named_weights,
    request_settings,
)
from luffy.types import Completion

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Opened:
    """What the process that has opened a server tells the others of its run."""

    url: str
    started: SeenServer | None  # by the run itself, on this machine
    sent: Sent | None  # the newest weights
    lost: str | None  # why the server is lost to the run, if it is


class VllmServerEngine:
    """A `StreamingEngine` on a vLLM server, with weights of its own: it can generate while the policy is updated."""

    def __init__(
        self,
        config: Config,
        loaded: LoadedModel,
        *,
        opened: Opened | None = None,
        turn: Turn = lambda: nullcontext(True),
    ) -> None:
        """Start or find the server, and give it the policy's weights.

        opened: by another process of the run, which sends the weights; this one generates. turn: see `Feed`.
        Raises ConfigError or ModelError for a server that this run cannot use, RunError for one that does not answer.
        """
        wanted = config.rollout.vllm
        settings = model_settings(config, loaded)
        model = model_folder(config.model)
        self._eos_ids = list(loaded.eos_ids)
        self._logprobs_mode = str(settings["logprobs_mode"])
        self._most_at_once = wanted.max_sequences
        self._lora = wanted.lora  # whether the adapter goes by itself
        self._lock = threading.Lock()  # weights never change under a completion
        self._lost: EngineLostError | None = None
        self._closed = False
        self._launched: LaunchedServer | None = None
        url = opened.url if opened else wanted.server
        if url is None:
            self._launched = _launch(config, model, settings)
            url = self._launched.url
        self._server = VllmServer(url, wanted.patience)
        self._feed = Feed(self._server, turn)
        self._buckets: Buckets | None = None
        if opened:
            self._server.is_gone = opened.started.gone if opened.started else self._server.is_gone
            self.follow(opened)
            return
        try:
            if self._launched:
                self._server.is_gone = self._launched.gone
            check_server(self._server, settings, serve_command(model, settings))
            self._buckets = Buckets(wanted.exchange, wanted.bucket_mib, settings["dtype"])
            self._run = secrets.token_hex(8)
            self.update_weights(loaded.model)
            self._refuse_unusable()
        except BaseException:
            self.close()
            raise

    @property
    def version(self) -> int:
        """Updates of the weights so far, the first one left out."""
        return self._feed.sent.version if self._feed.sent else -1

    @property
    def opened(self) -> Opened:
        """What the others need to know, after every update anew."""
        started = self._launched.seen() if self._launched else None
        return Opened(self._server.url, started, self._feed.sent, str(self._lost) if self._lost else None)

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
            self._feed.doubt()
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
            self._feed.doubt()
            self._server.persist("asking vLLM's server for its weights' version", self._feed.ensure)

    def update_weights(self, policy: PreTrainedModel) -> None:
        """Write the policy's weights into buckets and have the server load them.

        Raises RunError where they cannot be written. Where the server fails, the next batch raises EngineLostError in
        place of this call: by then the step is recorded, and a checkpoint can be left.
        """
        with self._lock:
            self._refuse_unusable()
            assert self._buckets is not None
            version = self.version + 1
            before, self._feed.sent = self._feed.sent, Sent(self._run, version, str(self._buckets.folder), ())
            base = before.files if self._lora and before else ()  # it is there, and stays
            files = base or self._write_files(policy)
            adapter = self._buckets.write_adapter(policy, version) if self._lora else None
            self._feed.sent = replace(self._feed.sent, files=files, adapter=adapter)
            try:
                self._server.persist("the update of the weights of vLLM's server", self._feed.push)
            except EngineLostError as error:
                self._lost = error

    def follow(self, opened: Opened) -> None:
        """Generate with the weights that another process of the run has sent."""
        with self._lock:
            self._feed.sent = opened.sent
            self._lost = EngineLostError(opened.lost) if opened.lost else None

    def close(self) -> None:
        """End the server if this process has started it, and remove the buckets; a closed engine stays closed."""
        self._closed = True
        self._server.close()
        if self._launched:
            self._launched.close()
        if self._buckets:
            self._buckets.remove()

    def _write_files(self, policy: PreTrainedModel) -> tuple[str, ...]:
        """All weights; where the adapter goes by itself, those of the base. Returns the files' names."""
        assert self._buckets is not None
        weights = named_weights(policy, base_weights if self._lora else merged_weights)
        with exhausting(weights):
            self._buckets.write(weights)
        return tuple(self._buckets.files)

    def _refuse_unusable(self) -> None:
        if self._closed:
            raise RunError("this vLLM engine is closed.")
        if self._lost:
            raise self._lost

    def _group(self, ids: list[int], n: int, sampling: Sampling, place: int) -> list[Completion]:
        """The completions of one prompt, in as many requests as the server's limit takes."""
        drawn = distinct(n, sampling)
        known = knows_logprobs(self._logprobs_mode, sampling)
        group: list[Completion] = []
        while len(group) < drawn:
            count = min(drawn - len(group), self._most_at_once)
            settings = request_settings(count, sampling, place, self._eos_ids)
            settings["seed"] += len(group)  # vLLM adds the number of the completion to it
            body = {"token_ids": ids, "sampling_params": settings} | self._of_adapter()
            group += self._server.persist("generating on vLLM's server", partial(self._draw, body, known))
        return group * (n // drawn)

    def _of_adapter(self) -> dict[str, str]:
        """What a request asks for beside the base, by its name: a server without this very adapter refuses it."""
        sent = self._feed.sent
        return {"model": sent.name} if sent and sent.adapter else {}

    def _draw(self, body: dict[str, Any], known: bool) -> list[Completion]:
        self._feed.ensure()
        try:
            choices = self._server.post(GENERATE, body)["choices"]
            return [_completion(one, known=known) for one in sorted(choices, key=lambda one: int(one["index"]))]
        except ServerTroubleError:
            self._feed.doubt()
            raise
        except LuffyError:
            raise  # one of them is a ValueError, too
        except (KeyError, TypeError, ValueError) as error:
            self._feed.doubt()
            raise ServerTroubleError(f"a nonsense answer ({type(error).__name__}: {error})") from None


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
        needed = (*NEEDED, "/v1/load_lora_adapter") if settings.get("enable_lora") else NEEDED
        if missing := [path for path in needed if path not in paths]:
            raise ConfigError(f"{server.url}: vLLM {version} there was started without {missing[0]}. {remedy}")
        found = ask("/server_info?config_format=json")["vllm_config"]
        backend = (found["weight_transfer_config"] or {}).get("backend")
        rank = (found.get("lora_config") or {}).get("max_lora_rank", 0)
        mode, longest = found["model_config"]["logprobs_mode"], int(found["model_config"]["max_model_len"])
    except (ModelError, KeyError, TypeError):
        raise ModelError(f"{server.url}: vLLM {version} there does not say how it was started. {remedy}") from None
    if backend != BACKEND:
        raise ConfigError(f"{server.url}: vLLM there takes weights through {backend}, not {BACKEND}. {remedy}")
    if mode != settings["logprobs_mode"]:
        raise ConfigError(f"{server.url}: vLLM there gives {mode}, not {settings['logprobs_mode']}. {remedy}")
    if rank < settings.get("max_lora_rank", 0):
        raise ConfigError(
            f"{server.url}: vLLM there takes adapters of rank {rank} at most, this run needs "
            f"{settings['max_lora_rank']}. {remedy}"
        )
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
