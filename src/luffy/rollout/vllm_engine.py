"""Generation with vLLM in this process, on weights of its own.

Decisions, and why:
- The engine lives in this process (no core process of vLLM's), so new weights are handed over as tensors, one after the
  other as the policy yields them: vLLM's worker has a method for that, which repacks them for its kernels layer by
  layer. There is no second whole copy on the way, and tied weights come once.
- On a CPU vLLM multiplies with packed copies of weights, and its reloading packs what was loaded by name. An output
  head tied to the embedding never is: it would go on with the old weights, so it is packed here.
- What vLLM keeps of prompts is forgotten after an update: it belongs to the old weights.
- Each prompt has a seed of its own, made from the seed and the prompt's place in the whole batch.
- vLLM counts log-probs either before the temperature or after temperature and top-p. Which one is that of the policy at
  the sampling temperature depends on the temperature of the run; where neither is, they are NaN, never a wrong number.
"""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from luffy.config import Config, PolicyConfig
from luffy.errors import ConfigError, ModelError, RunError
from luffy.policy import LoadedModel, context_of, extend_context, model_folder
from luffy.policy.sharding import whole
from luffy.rollout.engine import Sampling
from luffy.types import Completion

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel


class VllmEngine:
    """An `Engine` on vLLM, with weights of its own: it can generate while the policy is updated."""

    def __init__(self, config: Config, loaded: LoadedModel) -> None:
        """Load `config.model` into vLLM. Raises ConfigError without vLLM, ModelError where it cannot load the model."""
        self.version = 0  # updates of the weights so far
        self._eos_ids = list(loaded.eos_ids)
        self._raw = config.rollout.temperature == 1  # log-probs before the temperature, else after it and top-p
        self._lock = threading.Lock()  # weights never change under a completion
        self._whole = True  # False: an update has failed half-way, so weights of two versions may be mixed
        self._owns_group = not _has_process_group()
        vllm = import_vllm("rollout.engine=vllm")
        self._parameters = vllm.SamplingParams
        dtype, overrides = _dtype(config, loaded), context_overrides(config.model, config.policy)
        try:
            self._llm: Any = vllm.LLM(
                model_folder(config.model),
                dtype=dtype,
                max_model_len=longest_row(config, loaded),
                gpu_memory_utilization=config.rollout.vllm.memory_share,
                kv_cache_memory_bytes=_bytes(config.rollout.vllm.cache_gib),
                max_num_seqs=config.rollout.vllm.max_sequences,
                enforce_eager=config.rollout.vllm.eager,
                logprobs_mode="raw_logprobs" if self._raw else "processed_logprobs",
                generation_config="vllm",  # no sampling settings from the model's folder
                skip_tokenizer_init=True,
                trust_remote_code=config.policy.trust_remote_code,
                hf_overrides=overrides,
                seed=config.seed,
            )
        except Exception as error:  # of any of its many parts
            raise ModelError(f"{config.model}: vLLM cannot load it ({_first_line(error)}).") from None

    def generate(self, prompt_ids: Sequence[Sequence[int]], n: int, sampling: Sampling) -> list[list[Completion]]:
        """Draw n completions for each prompt; see `Engine.generate`.

        A seed is kept with one version of vLLM on one kind of device, as vLLM promises it. Raises RunError where vLLM
        fails, and where it is closed or an update of its weights has failed.
        """
        with self._lock:
            self._refuse_unusable()
            requests = [{"prompt_token_ids": list(ids)} for ids in prompt_ids]
            drawn = n if sampling.temperature > 0 else 1  # vLLM refuses several greedy completions: they are all alike
            settings = [self._settings(drawn, sampling, place) for place in range(len(requests))]
            try:
                outputs = self._llm.generate(requests, settings, use_tqdm=False) if requests else []
            except Exception as error:
                raise RunError(f"vLLM failed while it generated ({_first_line(error)}).") from None
        known = self._knows_logprobs(sampling)
        return [[_completion(one, known=known) for one in output.outputs] * (n // drawn) for output in outputs]

    def update_weights(self, policy: PreTrainedModel) -> None:
        """Load the policy's weights, and forget what was kept of prompts.

        Raises RunError where vLLM does not take them; it then generates nothing any more.
        """
        with self._lock:
            self._refuse_unusable()
            self._whole = False
            try:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": _weights(policy)})
                self._llm.apply_model(pack_tied_heads)
                forgotten = self._llm.reset_prefix_cache()
            except Exception as error:
                raise RunError(f"vLLM does not take the policy's weights ({_first_line(error)}).") from None
            if not forgotten:
                raise RunError("vLLM still keeps keys and values of the weights before the update.")
            self._whole = True
            self.version += 1

    def close(self) -> None:
        """Free weights and cache; a closed engine stays closed, and another can be opened."""
        with self._lock:
            if self._llm is None:
                return
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None
            if self._owns_group:
                from vllm.distributed import cleanup_dist_env_and_memory

                cleanup_dist_env_and_memory()

    def _refuse_unusable(self) -> None:
        if self._llm is None:
            raise RunError("this vLLM engine is closed.")
        if not self._whole:
            raise RunError("an update of vLLM's weights has failed, so weights of two versions may be mixed in it.")

    def _settings(self, n: int, sampling: Sampling, place: int) -> Any:
        return self._parameters(
            n=n,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=seed_of_prompt(sampling, place),
            stop_token_ids=self._eos_ids,
            ignore_eos=True,  # the ends are those of the run, whatever the model's folder says
            logprobs=0,  # of the sampled token alone
            detokenize=False,
        )

    def _knows_logprobs(self, sampling: Sampling) -> bool:
        """Whether vLLM's log-probs are those of the policy at the sampling temperature, before top-p."""
        return sampling.temperature in (0, 1) if self._raw else sampling.temperature == 0 or sampling.top_p == 1


def import_vllm(key: str) -> Any:
    """The library, with its core in this process. key: what asks for it. Raises ConfigError where it is missing."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it writes hundreds of lines about itself
    try:
        import vllm
    except ImportError as error:
        reason = "" if isinstance(error, ModuleNotFoundError) and error.name == "vllm" else f" ({_first_line(error)})"
        raise ConfigError(
            f"{key} needs the package vllm{reason}: pip install vllm (on a CPU: `make test-vllm` shows the versions)."
        ) from None
    return vllm


def longest_row(config: Config, loaded: LoadedModel) -> int:
    """Tokens of prompt and completion that vLLM plans for: what the run may ask, within what the model reads."""
    answer = max(config.rollout.max_tokens, config.evaluation.max_tokens or 0)
    wanted = config.rollout.vllm.max_length or config.data.max_prompt_tokens + answer
    context = context_of(loaded.model)
    return wanted if context is None else min(wanted, context)


def seed_of_prompt(sampling: Sampling, place: int) -> int:
    """A seed for the prompt at this place, far from its neighbours: vLLM adds the number of the completion to it."""
    text = f"{sampling.seed} {sampling.first + place}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 2


def context_overrides(model: str, policy: PolicyConfig) -> dict[str, Any]:
    """The keys of the model's configuration that `policy` changes."""
    if policy.context_length is None and policy.rope_theta is None:
        return {}
    from transformers import AutoConfig

    folder = model_folder(model)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=policy.trust_remote_code)
    changed = extend_context(config, model, policy).to_dict()
    return {key: changed[key] for key in ("max_position_embeddings", "rope_parameters") if key in changed}


def pack_tied_heads(model: Module) -> None:
    """Pack the output heads anew whose weight is another layer's; does nothing where vLLM keeps no packed copies."""
    first_with: dict[int, Module] = {}
    layer: Any  # of vLLM's classes
    for layer in model.modules():
        weight = getattr(layer, "weight", None)
        if weight is None or not weight.numel() or first_with.setdefault(weight.data_ptr(), layer) is layer:
            continue
        if hasattr(layer, "cpu_linear"):
            layer.quant_method.process_weights_after_loading(layer)


def _weights(policy: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Names and weights, one at a time, gathered where they are split over processes; tied ones once."""
    for name, weight in policy.named_parameters():
        yield name, whole(weight.detach())


def _bytes(gib: float | None) -> int | None:
    return None if gib is None else round(gib * 2**30)


def _dtype(config: Config, loaded: LoadedModel) -> str:
    wanted = config.rollout.dtype
    dtype = str(loaded.model.dtype).removeprefix("torch.") if wanted == "auto" else wanted
    if dtype == "float64":
        raise ConfigError("rollout.engine=vllm has no float64: set rollout.dtype to float32 or bfloat16.")
    return dtype


def _completion(output: Any, *, known: bool) -> Completion:
    ids = tuple(output.token_ids)
    steps = output.logprobs or ()
    logprobs = (step[token].logprob if known else math.nan for token, step in zip(ids, steps, strict=True))
    return Completion(ids, tuple(logprobs), output.finish_reason == "stop")


def _has_process_group() -> bool:
    import torch.distributed as distributed

    return distributed.is_available() and distributed.is_initialized()


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300] or type(error).__name__
