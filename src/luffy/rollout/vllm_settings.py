"""What a run asks of vLLM, in this process or on a server: the model's settings, and those of each request."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from luffy.config import Config, PolicyConfig
from luffy.errors import ConfigError, first_line
from luffy.policy import LoadedModel, context_of, extend_context, model_folder
from luffy.policy.adapters import merged_weights
from luffy.policy.sharding import gathered
from luffy.rollout.engine import Sampling
from luffy.types import Completion

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

Weights = Callable[["PreTrainedModel"], Iterator[tuple[str, "Tensor"]]]

SHOWN = 300  # characters of what vLLM says when it fails
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # for which vLLM makes room


def import_vllm(key: str) -> Any:
    """The library, with its core in this process. key: what asks for it. Raises ConfigError where it is missing."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # it writes hundreds of lines about itself
    try:
        import vllm
    except ImportError as error:
        reason = (
            "" if isinstance(error, ModuleNotFoundError) and error.name == "vllm" else f" ({first_line(error, SHOWN)})"
        )
        raise ConfigError(
            f"{key} needs the package vllm{reason}: pip install vllm (on a CPU: `make test-vllm` shows the versions)."
        ) from None
    return vllm


def model_settings(config: Config, loaded: LoadedModel) -> dict[str, Any]:
    """How vLLM has to hold the model for this run, by the names of its own arguments. Raises ConfigError."""
    wanted = config.rollout.vllm
    return {
        "dtype": _dtype(config, loaded),
        "max_model_len": longest_row(config, loaded),
        "gpu_memory_utilization": wanted.memory_share,
        "kv_cache_memory_bytes": None if wanted.cache_gib is None else round(wanted.cache_gib * 2**30),
        "max_num_seqs": wanted.max_sequences,
        "enforce_eager": wanted.eager,
        "enable_sleep_mode": wanted.sleep,
        "logprobs_mode": logprobs_mode(config),
        "generation_config": "vllm",  # no sampling settings from the model's folder
        "skip_tokenizer_init": True,
        "trust_remote_code": config.policy.trust_remote_code,
        "hf_overrides": context_overrides(config.model, config.policy),
        "seed": config.seed,
    } | _lora_settings(config)


def request_settings(n: int, sampling: Sampling, place: int, eos_ids: Sequence[int]) -> dict[str, Any]:
    """How vLLM has to draw n completions for the prompt at this place of the batch: its sampling parameters."""
    return {
        "n": n,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens,
        "seed": seed_of_prompt(sampling, place),
        "stop_token_ids": list(eos_ids),
        "ignore_eos": True,  # the ends are those of the run, whatever the model's folder says
        "logprobs": 0,  # of the sampled token alone
        "detokenize": False,
    }


def logprobs_mode(config: Config) -> str:
    """Which of its two kinds of log-probs: before the temperature, or after temperature and top-p."""
    return "raw_logprobs" if config.rollout.temperature == 1 else "processed_logprobs"


def distinct(n: int, sampling: Sampling) -> int:
    """How many of n completions to ask for: vLLM refuses several greedy ones, which are all alike."""
    return n if sampling.temperature > 0 else 1


def knows_logprobs(mode: str, sampling: Sampling) -> bool:
    """Whether vLLM's log-probs are those of the policy at the sampling temperature, before top-p."""
    if mode == "raw_logprobs":
        return sampling.temperature in (0, 1)
    return sampling.temperature == 0 or sampling.top_p == 1


def completion(ids: Sequence[int], logprobs: Iterator[float], reason: str | None, *, known: bool) -> Completion:
    """A completion of vLLM's; logprobs that are not known become NaN. Raises ValueError for what is none."""
    if reason not in ("stop", "length"):
        raise ValueError(f"a completion that ended by {reason!r}")
    values = tuple(value if known else math.nan for _, value in zip(ids, logprobs, strict=True))
    return Completion(tuple(ids), values, reason == "stop")


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


def named_weights(policy: PreTrainedModel, of: Weights = merged_weights) -> Iterator[tuple[str, Tensor]]:
    """Names and weights of the policy, an adapter merged into them, one at a time; tied ones once.

    of: `base_weights` leaves the adapter out.
    Weights that are split over processes are gathered: all of them must ask for them, to the end (see `exhausting`).
    """
    held = policy.state_dict(keep_vars=True)
    first = {id(weight): name for name, weight in reversed(held.items())}
    again = held.keys() - set(first.values())
    for name, weight in gathered(of(policy), policy):
        if name not in again:
            yield name, weight.detach()


@contextmanager
def exhausting(weights: Iterator[tuple[str, Tensor]]) -> Iterator[None]:
    """Ask for the rest of the weights at the end: who stops half-way leaves those waiting who gather them as well."""
    try:
        yield
    finally:
        for _ in weights:
            pass


def _lora_settings(config: Config) -> dict[str, Any]:
    if not config.rollout.vllm.lora:
        return {}
    rank = config.adapter.rank or 1
    room = next((one for one in LORA_RANKS if one >= rank), None)
    if room is None:
        raise ConfigError(
            f"rollout.vllm.lora: vLLM takes adapters of rank {LORA_RANKS[-1]} at most, adapter.rank is {rank}. Leave "
            "rollout.vllm.lora out, so that the adapter is merged."
        )
    return {"enable_lora": True, "max_loras": 1, "max_lora_rank": room}


def _dtype(config: Config, loaded: LoadedModel) -> str:
    wanted = config.rollout.dtype
    dtype = str(loaded.model.dtype).removeprefix("torch.") if wanted == "auto" else wanted
    if dtype == "float64":
        raise ConfigError(
            f"rollout.engine={config.rollout.engine} has no float64: set rollout.dtype to float32 or bfloat16."
        )
    return dtype
