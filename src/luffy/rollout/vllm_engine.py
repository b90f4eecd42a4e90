"""Generation with vLLM in this process, on weights of its own.

Decisions, and why:
- The engine lives in this process (no core process of vLLM's), so new weights are handed over as tensors, one after the
  other as the policy yields them, through vLLM's public weight-transfer interface with a receiver of ours
  (rollout/vllm_receiver.py). There is no second whole copy on the way, and tied weights come once.
- An adapter is merged into the weights, or goes by itself (`rollout.vllm.lora`): as a file in memory, which is how vLLM
  takes it, under a new name for each update. The base comes from the policy, once: it may be quantised.
- What vLLM keeps of prompts is forgotten after an update: it belongs to the old weights.
- Each prompt has a seed of its own, made from the seed and the prompt's place in the whole batch.
- vLLM counts log-probs either before the temperature or after temperature and top-p. Which one is that of the policy at
  the sampling temperature depends on the temperature of the run; where neither is, they are NaN, never a wrong number.
- Where several processes train, each has a vLLM of its own: vLLM finds their connection and makes itself a group of one
  on each. They are opened together, as making the groups takes all of them; then none waits for another.
- Nothing in this process can end a call of vLLM's that hangs. One that takes long is named in the log.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luffy.config import Config
from luffy.errors import ModelError, RunError, first_line
from luffy.policy import LoadedModel, model_folder
from luffy.policy.adapters import base_weights, merged_weights, save_adapter, trained_weights
from luffy.policy.quantization import is_quantized
from luffy.rollout.engine import Sampling
from luffy.rollout.vllm_buckets import IN_MEMORY
from luffy.rollout.vllm_plugin import BACKEND, register
from luffy.rollout.vllm_settings import (
    SHOWN,
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

logger = logging.getLogger(__name__)


class VllmEngine:
    """An `Engine` on vLLM, with weights of its own: it can generate while the policy is updated."""

    def __init__(self, config: Config, loaded: LoadedModel) -> None:
        """Load `config.model` into vLLM. Raises ConfigError without vLLM, ModelError where it cannot load the model."""
        self.version = 0  # updates of the weights so far
        self._eos_ids = list(loaded.eos_ids)
        self._lock = threading.Lock()  # weights never change under a completion
        self._whole = True  # False: an update has failed half-way, so weights of two versions may be mixed
        processes = _connected_processes()
        self._owns_group = not processes
        self._patience = config.rollout.vllm.patience
        self._sleeps = config.rollout.vllm.sleep
        self._lora = config.rollout.vllm.lora  # whether the adapter goes by itself
        self._adapter: Any = None  # the newest, as vLLM knows it; none: what generates is the base
        self._adapter_folder: tempfile.TemporaryDirectory[str] | None = None  # vLLM may read it again
        self._asleep: set[str] = set()  # what of vLLM's memory is given back
        settings = model_settings(config, loaded)
        self._logprobs_mode = settings["logprobs_mode"]
        vllm = import_vllm("rollout.engine=vllm")
        register()
        if processes > 1:
            settings["distributed_executor_backend"] = (
                "external_launcher"  # by the processes that there are, on their GPU
            )
        if self._sleeps and loaded.model.device.type == "cpu":
            settings["enable_sleep_mode"] = False  # vLLM refuses it there
            logger.warning("rollout.vllm.sleep: on a CPU vLLM goes to sleep and gives no memory back.")
        self._parameters = vllm.SamplingParams
        try:
            transfer = vllm.config.WeightTransferConfig(backend=BACKEND)
            self._llm: Any = vllm.LLM(model_folder(config.model), weight_transfer_config=transfer, **settings)
            self._llm.init_weight_transfer_engine({"init_info": {}})
        except Exception as error:  # of any of its many parts
            raise ModelError(f"{config.model}: vLLM cannot load it ({first_line(error, SHOWN)}).") from None
        if self._lora or is_quantized(loaded.model):  # the base that the adapter belongs to, whatever the folder holds
            with self._errors("vLLM does not take the policy's weights"):
                self._take_weights(loaded.model)
        self._sleep()

    def generate(self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Draw n completions for each prompt; see `Engine.generate`.

        A seed is kept with one version of vLLM on one kind of device, as vLLM promises it. Raises RunError where vLLM
        fails, and where it is closed or an update of its weights has failed.
        """
        with self._lock:
            self._refuse_unusable()
            requests = [{"prompt_token_ids": list(ids)} for ids in prompt_ids]
            drawn = distinct(n, sampling)
            settings = [
                self._parameters(**request_settings(drawn, sampling, place, self._eos_ids))
                for place in range(len(requests))
            ]
            with self._errors("vLLM failed while it generated"):
                self._wake("weights", "kv_cache")
                asked = {"use_tqdm": False, "lora_request": self._adapter}
                outputs = self._llm.generate(requests, settings, **asked) if requests else []
                self._sleep()
        known = knows_logprobs(self._logprobs_mode, sampling)
        return [[_completion(one, known=known) for one in output.outputs] * (n // drawn) for output in outputs]

    def update_weights(self, policy: PreTrainedModel) -> None:
        """Load the policy's weights, and forget what was kept of prompts.

        Raises RunError where vLLM does not take them; it then generates nothing any more.
        """
        with self._lock:
            self._refuse_unusable()
            self._whole = False
            with self._errors("vLLM does not take the policy's weights"):
                self._wake("weights")
                if self._lora:
                    self._take_adapter(policy)
                else:
                    self._take_weights(policy)
                forgotten = self._llm.reset_prefix_cache()
            if not forgotten:
                raise RunError("vLLM still keeps keys and values of the weights before the update.")
            self._whole = True
            self.version += 1

    def close(self) -> None:
        """Free weights and cache; a closed engine stays closed, and another can be opened.

        vLLM takes leave of the other processes for the whole of this one: nothing can be sent to them afterwards.
        """
        with self._lock:
            if self._llm is None:
                return
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            if self._owns_group:
                from vllm.distributed import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()

    def _take_weights(self, policy: PreTrainedModel) -> None:
        weights = named_weights(policy, base_weights if self._lora else merged_weights)
        with exhausting(weights):
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": {"weights": weights, "last": True}})
            self._llm.finish_weight_update(str(self.version + 1))

    def _take_adapter(self, policy: PreTrainedModel) -> None:
        """Each with a name of its own; the one before goes when the new one has come."""
        from vllm.lora.request import LoRARequest

        folder = tempfile.TemporaryDirectory(prefix="luffy-adapter-", dir=IN_MEMORY if IN_MEMORY.is_dir() else None)
        save_adapter(Path(folder.name), policy, trained_weights(policy), "")
        number = self.version + 1
        adapter = LoRARequest(f"adapter-{number}", number, folder.name)
        if not self._llm.llm_engine.add_lora(adapter):
            raise RunError("the adapter was there before")
        self._adapter, self._adapter_folder = adapter, folder

    def _refuse_unusable(self) -> None:
        if self._llm is None:
            raise RunError("this vLLM engine is closed.")
        if not self._whole:
            raise RunError("an update of vLLM's weights has failed, so weights of two versions may be mixed in it.")

    def _sleep(self) -> None:
        """Give memory back to the update: the cache, and the weights to the host's memory."""
        if self._sleeps:
            self._llm.sleep(level=1)
            self._asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        due = [part for part in parts if part in self._asleep]
        if due:
            self._llm.wake_up(due)
            self._asleep -= set(due)

    @contextmanager
    def _errors(self, failed: str) -> Iterator[None]:
        """What fails inside is a RunError; what takes longer than the patience is named in the log."""
        late = threading.Timer(self._patience, _name_what_takes_long, (self._patience,))
        late.daemon = True
        late.start()
        try:
            yield
        except Exception as error:
            raise RunError(f"{failed} ({first_line(error, SHOWN)}).") from None
        finally:
            late.cancel()


def _name_what_takes_long(patience: float) -> None:
    logger.warning(
        "vLLM has been at work for %g s (rollout.vllm.patience) without coming back. In this process it cannot be "
        "stopped but with the run, which goes on from its newest checkpoint; a server can: rollout.engine=vllm_server.",
        patience,
    )


def _completion(output: Any, *, known: bool) -> Completion:
    ids = output.token_ids
    logprobs = (step[token].logprob for token, step in zip(ids, output.logprobs or (), strict=True))
    return completion(ids, logprobs, output.finish_reason, known=known)


def _connected_processes() -> int:
    """How many processes train together; 0 where this one is connected with none."""
    import torch.distributed as distributed

    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 0
